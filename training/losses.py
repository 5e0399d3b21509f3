"""What classifiers say of every crop, kept beside a run for proposers to be fitted to.

Axes: N samples of a split, K candidates, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.durable import write_file
from pipeline.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class LossMatrix:
    """What a classifier that has not seen the image loses on each of its crops.

    Attributes:
        losses_NK: Float32, cross-entropy without smoothing, of the candidates of a run; not a
            number where it has not been computed.
    """

    losses_NK: Tensor

    @classmethod
    def empty(cls, num_samples: int, num_crops: int) -> "LossMatrix":
        """Begin with nothing known."""
        return cls(losses_NK=torch.full((num_samples, num_crops), torch.nan))

    def save(self, path: Path) -> None:
        """Write the matrix as safetensors."""
        _write(path, vars(self))

    @classmethod
    def load(cls, path: Path, *, num_samples: int, num_crops: int) -> "LossMatrix":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If it is damaged or of other samples.
        """
        return cls(**_read(path, ("losses_NK",), (num_samples, num_crops)))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a classifier says of every crop of the validation split.

    Attributes:
        labels_N: Int64.
        logits_NKC: Float32, of the candidates of a run.
    """

    labels_N: Tensor
    logits_NKC: Tensor

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        _write(path, vars(self))

    @classmethod
    def load(cls, path: Path, *, num_samples: int, num_crops: int) -> "Judged":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If it is damaged or of other samples.
        """
        return cls(**_read(path, ("logits_NKC", "labels_N"), (num_samples, num_crops)))


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _read(path: Path, names: tuple[str, ...], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Read tensors of these names, the first of which begins with this shape."""
    try:
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
    if set(tensors) != set(names):
        raise _unusable(path, f"the tensors {', '.join(sorted(tensors))}")
    if tensors[names[0]].shape[:2] != shape:
        raise _unusable(path, f"those of {tuple(tensors[names[0]].shape[:2])}")
    return tensors


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"a run's losses and logits must be of its samples and crops; got {what} in {path}. "
        "Delete it; it is computed again."
    )
