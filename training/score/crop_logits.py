"""What one classifier and one proposer say of every crop, and the figures that follow.

Axes: N samples of the split, K candidates, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from pipeline.common.errors import CheckpointError
from training.score.losses import read_tensors, write_tensors


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one classifier and its proposer say of every crop of a split.

    Attributes:
        labels_N: Int64.
        predicted_NK: Int64, the class that the classifier sees in each crop.
        losses_NK: Float32, cross-entropy without smoothing.
        averaged_N: Int64, the class with the highest mean probability over all crops.
        probabilities_NK: Float32, the proposer's. Of a policy that does not look: 1 for its
            crop, which `random` and `mean` draw by a fixed seed.
    """

    labels_N: Tensor
    predicted_NK: Tensor
    losses_NK: Tensor
    averaged_N: Tensor
    probabilities_NK: Tensor

    @classmethod
    def of(cls, labels_N: Tensor, logits_NKC: Tensor, probabilities_NK: Tensor) -> "Table":
        """Take it from what the classifier says of every crop, and the proposer's choice."""
        return cls(
            labels_N=labels_N,
            predicted_NK=logits_NKC.argmax(2),
            losses_NK=crop_losses(labels_N, logits_NKC),
            averaged_N=logits_NKC.softmax(2).mean(1).argmax(1),
            probabilities_NK=probabilities_NK.float(),
        )

    @property
    def chosen_N(self) -> Tensor:
        """Index of each sample's best crop by the proposer."""
        return self.probabilities_NK.argmax(1)

    @property
    def right_NK(self) -> Tensor:
        """Whether the classifier is right on each crop, bool."""
        return self.predicted_NK == self.labels_N[:, None]

    def save(self, path: Path, *, weights: str) -> None:
        """Write the table as safetensors, which name the checkpoint that it is of."""
        write_tensors(path, vars(self), weights=(weights,))

    @classmethod
    def load(cls, path: Path, *, weights: str = "") -> "Table":
        """Read what `save` wrote.

        Args:
            path: Of the table.
            weights: SHA-256 of the checkpoint that it must be of; empty takes any.

        Raises:
            CheckpointError: If it is of another.
        """
        tensors, found = read_tensors(path)
        if weights and found != (weights,):
            raise CheckpointError(
                "a run's table must be of the checkpoint that its record names; got one of another "
                f"in {path}. Delete it, or train the run again."
            )
        return cls(**tensors)


def crop_losses(labels_N: Tensor, logits_NKC: Tensor) -> Tensor:
    """Give the cross-entropy of every crop, without smoothing, float32 `(N, K)`."""
    num_crops = logits_NKC.shape[1]
    labels = labels_N.repeat_interleave(num_crops)
    losses = F.cross_entropy(logits_NKC.flatten(0, 1), labels, reduction="none")
    return losses.reshape(-1, num_crops)
