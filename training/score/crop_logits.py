"""The logits of every crop of a split: every figure of a run follows from them.

They lie in the folder of a run as safetensors, tied to their checkpoints by SHA-256.

Axes: N samples of the split, K candidates, C classes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError

NAMES = ("labels_N", "logits_NKC", "probabilities_NK")
WEIGHTS = "srp_weights"  # the file's field that names the checkpoints it was computed with

Digests = tuple[str, ...]
"""SHA-256 of checkpoints, each as the file holds it of itself; empty where the file is gone."""


@dataclass(frozen=True, kw_only=True)
class CropLogits:
    """What a classifier says of every crop of N samples, and which crop is chosen.

    Attributes:
        labels_N: Int64.
        logits_NKC: Float32.
        probabilities_NK: Float32, the proposer's. Without a proposer: 1 for the crop of the
            policy, which `random` and `mean` draw by a fixed seed.
    """

    labels_N: Tensor
    logits_NKC: Tensor
    probabilities_NK: Tensor

    @cached_property
    def predicted_NK(self) -> Tensor:
        """The class that the classifier sees in each crop, int64."""
        return self.logits_NKC.argmax(2)

    @cached_property
    def losses_NK(self) -> Tensor:
        """Cross-entropy of each crop, without smoothing, float32."""
        num_crops = self.logits_NKC.shape[1]
        labels = self.labels_N.repeat_interleave(num_crops)
        losses = F.cross_entropy(self.logits_NKC.flatten(0, 1), labels, reduction="none")
        return losses.reshape(-1, num_crops)

    @cached_property
    def averaged_N(self) -> Tensor:
        """The class with the highest mean probability over all crops, int64."""
        return self.logits_NKC.softmax(2).mean(1).argmax(1)

    @property
    def chosen_N(self) -> Tensor:
        """Index of the crop with the highest probability, int64."""
        return self.probabilities_NK.argmax(1)

    @property
    def right_NK(self) -> Tensor:
        """Whether the classifier is right on each crop, bool."""
        return self.predicted_NK == self.labels_N[:, None]

    def save(self, path: Path, *, weights: Digests) -> None:
        """Write the logits with the digests of the checkpoints that they come from."""
        tensors = {name: getattr(self, name).contiguous() for name in NAMES}
        write_file(path, save(tensors, metadata={WEIGHTS: ",".join(weights)}))

    @classmethod
    def load(
        cls, path: Path, *, weights: Digests = (), shape: tuple[int, int] | None = None
    ) -> "CropLogits":
        """Read what `save` wrote.

        Args:
            path: The file.
            weights: Checkpoints that it must be of, in the order of `save`; empty takes any.
            shape: Samples and crops that it must hold; None takes any.

        Raises:
            CheckpointError: If it is damaged, or of other samples or checkpoints.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                found = tuple((file.metadata() or {}).get(WEIGHTS, "").split(","))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
        except (OSError, safetensors.SafetensorError) as error:
            raise _unusable(path, f"{type(error).__name__}: {error}") from error
        if set(tensors) != set(NAMES):
            raise _unusable(path, f"the tensors {', '.join(sorted(tensors))}")
        loaded = cls(**tensors)
        held = tuple(loaded.logits_NKC.shape[:2])
        if shape not in (None, held):
            raise _unusable(path, f"{held[0]} samples of {held[1]} crops")
        # A checkpoint that was deleted since, to save room, proves nothing against them.
        wanted = [own or other for own, other in zip(weights, found, strict=False)]
        if weights and (len(found) != len(weights) or list(found) != wanted):
            raise _unusable(path, "those of other checkpoints" if any(found) else "no checkpoint")
        return loaded


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        "a run's logits must be of its own checkpoints, samples and crops; got "
        f"{what} in {path}. Delete the file: it is computed again, or left out."
    )
