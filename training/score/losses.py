"""What classifiers say of every crop, kept beside a run for proposers to be fitted to.

Axes: N samples of a split, K candidates, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError

WEIGHTS = "srp_weights"  # a file's field that names the checkpoints which it was computed with

Digests = tuple[str, ...]
"""SHA-256 of checkpoints, each as the file holds it of itself, in an order that is always the same.

Empty ones are of files that are not there."""


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

    def save(self, path: Path, *, weights: Digests) -> None:
        """Write the matrix as safetensors, which name the checkpoints that it is of."""
        write_tensors(path, vars(self), weights=weights)

    @classmethod
    def load(
        cls, path: Path, *, num_samples: int, num_crops: int, weights: Digests
    ) -> "LossMatrix":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If it is damaged, or of other samples or checkpoints.
        """
        return cls(**_read(path, ("losses_NK",), (num_samples, num_crops), weights))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a classifier says of every crop of the validation split.

    Attributes:
        labels_N: Int64.
        logits_NKC: Float32, of the candidates of a run.
    """

    labels_N: Tensor
    logits_NKC: Tensor

    def save(self, path: Path, *, weights: Digests) -> None:
        """Write it as safetensors, which name the checkpoint that it is of."""
        write_tensors(path, vars(self), weights=weights)

    @classmethod
    def load(cls, path: Path, *, num_samples: int, num_crops: int, weights: Digests) -> "Judged":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If it is damaged, or of other samples or another checkpoint.
        """
        return cls(**_read(path, ("logits_NKC", "labels_N"), (num_samples, num_crops), weights))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, weights: Digests) -> None:
    """Write tensors as safetensors, with the checkpoints that they were computed with."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_file(path, save(contiguous, metadata={WEIGHTS: ",".join(weights)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Digests]:
    """Read what `write_tensors` wrote; a file of before it named checkpoints names none."""
    with safetensors.safe_open(path, framework="pt") as file:
        weights = (file.metadata() or {}).get(WEIGHTS, "")
        names = file.keys()  # no dict: it cannot be iterated over
        return {name: file.get_tensor(name) for name in names}, tuple(weights.split(","))


def _read(
    path: Path, names: tuple[str, ...], shape: tuple[int, int], weights: Digests
) -> dict[str, Tensor]:
    """Read tensors of these names and checkpoints, the first of which begins with this shape."""
    try:
        tensors, found = read_tensors(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
    if set(tensors) != set(names):
        raise _unusable(path, f"the tensors {', '.join(sorted(tensors))}")
    if tensors[names[0]].shape[:2] != shape:
        raise _unusable(path, f"those of {tuple(tensors[names[0]].shape[:2])}")
    # A checkpoint that was deleted since, to save room, says nothing against them.
    known = [own or other for own, other in zip(weights, found, strict=False)]
    if len(found) != len(weights) or list(found) != known:
        named = "those of other checkpoints" if any(found) else "those that name no checkpoint"
        raise _unusable(path, named)
    return tensors


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"a run's losses and logits must be of its own checkpoints, of its samples and crops; got "
        f"{what} in {path}. "
        "Delete it; it is computed again."
    )
