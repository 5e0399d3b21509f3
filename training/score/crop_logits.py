"""What one classifier and one proposer say of every crop, and the figures that follow.

Axes: N samples of the split, K candidates, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.common.errors import CheckpointError
from training.model.classifier import SelectiveClassifier
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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one evaluation; accuracies are top-1, %.

    Attributes:
        crops: Names of the K candidates; the tuples below that are K long follow them.
        num_samples: Of the split; all were seen.
        top1: Of the policy itself.
        top1_crops: Of each crop always.
        top1_random: Of a crop drawn uniformly, the exact expectation.
        top1_mean: Of the classes' mean probability over all K crops.
        top1_any_right: Of any crop right: the share of samples with a crop on which the classifier
            is right, known in hindsight alone.
        shares: Of the samples for which each crop was chosen, 0 to 1.
        entropy_of_mean: Of the mean choice, nats; 0 where all images get the same crop.
        mean_entropy: Mean over images of the entropy of the choice, nats.
        proposer_macs: For the K glimpses of one image.
        classifier_macs: For what the policy shows the classifier of one image.
        top1_classes: Of the policy, by class.
        confusion: Counts by true class, then by predicted class, of the policy.
    """

    crops: tuple[str, ...]
    num_samples: int
    top1: float
    top1_crops: tuple[float, ...]
    top1_random: float
    top1_mean: float
    top1_any_right: float
    shares: tuple[float, ...]
    entropy_of_mean: float
    mean_entropy: float
    proposer_macs: int
    classifier_macs: int
    top1_classes: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


def summarise(
    table: Table, model: SelectiveClassifier, *, glimpse_px: int, crop_px: int, num_classes: int
) -> Evaluation:
    """Turn a table into figures.

    Args:
        table: Of the whole split.
        model: That it was made with.
        glimpse_px: Side of the glimpses, px.
        crop_px: Side of the crops, px.
        num_classes: Of the data.
    """
    hits_NK = table.right_NK.double()
    predicted_N = final_prediction(table, model.config.policy)
    hits_N = final_hits(table, model.config.policy)
    mean_choice_K = table.probabilities_NK.double().mean(0)
    proposer, classifier = count_macs(model, glimpse_px=glimpse_px, crop_px=crop_px)
    num_crops = len(model.candidates)
    counts = torch.bincount(table.chosen_N, minlength=num_crops)
    pairs = torch.bincount(table.labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return Evaluation(
        crops=model.names,
        num_samples=len(table.labels_N),
        top1=_percent(hits_N),
        top1_crops=tuple(_percent(hits_NK[:, k]) for k in range(num_crops)),
        top1_random=_percent(hits_NK.mean(1)),
        top1_mean=_percent((table.averaged_N == table.labels_N).double()),
        top1_any_right=_percent(hits_NK.amax(1)),
        shares=tuple((counts / counts.sum()).tolist()),
        entropy_of_mean=float(torch.special.entr(mean_choice_K).sum()),
        mean_entropy=float(torch.special.entr(table.probabilities_NK.double()).sum(1).mean()),
        proposer_macs=proposer,
        classifier_macs=classifier * (num_crops if model.config.policy == "mean" else 1),
        top1_classes=tuple(_percent(hits_N[table.labels_N == c]) for c in range(num_classes)),
        confusion=tuple(map(tuple, pairs.reshape(num_classes, num_classes).tolist())),
    )


def final_prediction(table: Table, policy: str) -> Tensor:
    """Give the class that the policy itself predicts for each sample, int64 `(N,)`."""
    if policy == "mean":
        return table.averaged_N
    return table.predicted_NK.gather(1, table.chosen_N[:, None])[:, 0]


def final_hits(table: Table, policy: str) -> Tensor:
    """Give the chance that the policy itself is right on each sample, float64 `(N,)`.

    It is 0 or 1 but for a crop drawn at random: that is scored by its expectation over the K crops,
    not by one draw.
    """
    if policy == "random":
        return table.right_NK.double().mean(1)
    return (final_prediction(table, policy) == table.labels_N).double()


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.mean()) if len(hits) else 0.0


def count_macs(model: SelectiveClassifier, *, glimpse_px: int, crop_px: int) -> tuple[int, int]:
    """Count multiply-accumulates with torch's own flop counter; two flops are one MAC.

    Returns:
        Of the proposer on one image's K glimpses, and of the classifier on one crop.
    """
    device = next(model.parameters()).device
    model.eval()
    proposer = 0
    with torch.inference_mode():
        if model.proposer is not None:
            shape = (1, len(model.looked_at), glimpse_px, glimpse_px)
            looked = torch.zeros(shape, dtype=torch.uint8, device=device)
            proposer = _flops(lambda: model.proposer(looked)) // 2  # type: ignore[misc]
        crop = torch.zeros((1, crop_px, crop_px, 3), device=device)
        return proposer, _flops(lambda: model.logits(crop)) // 2


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
