"""The figures of an evaluation, from the logits of its crops.

Axes: N samples of the split, K candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.model.classifier import SelectiveClassifier
from training.model.policies import POLICIES
from training.score.cost import count_macs
from training.score.crop_logits import CropLogits


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one evaluation; accuracies are top-1, %.

    Attributes:
        crops: Names of the K candidates; the tuples below that are K long follow them.
        num_samples: Images of the split.
        top1: Accuracy of the policy.
        top1_crops: Accuracy on each crop.
        top1_random: Accuracy on a random crop, the exact expectation.
        top1_mean: Accuracy of the mean probability over all K crops.
        top1_any_right: Share of the images with a crop on which the classifier is right, known in
            hindsight alone.
        shares: Share of the images for which each crop was chosen, 0 to 1.
        entropy_of_mean: Entropy of the mean choice, nats; 0 where all images get the same crop.
        mean_entropy: Mean entropy of an image's choice, nats.
        proposer_macs: MACs of the proposer for one image.
        classifier_macs: MACs of the classifier for one image, all crops that the policy shows it.
        top1_classes: Accuracy of the policy by class.
        confusion: Counts of the policy by true class, then by predicted class.
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


def summarise(logits: CropLogits, model: SelectiveClassifier) -> Evaluation:
    """Compute every figure of an evaluation.

    Args:
        logits: Logits of the whole split.
        model: That they come from.
    """
    hits_NK = logits.right_NK.double()
    predicted_N = final_prediction(logits, model.config.policy)
    hits_N = final_hits(logits, model.config.policy)
    mean_choice_K = logits.probabilities_NK.double().mean(0)
    proposer, classifier = count_macs(model)
    num_crops, num_classes = len(model.candidates), model.num_classes
    counts = torch.bincount(logits.chosen_N, minlength=num_crops)
    pairs = torch.bincount(logits.labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return Evaluation(
        crops=model.names,
        num_samples=len(logits.labels_N),
        top1=_percent(hits_N),
        top1_crops=tuple(_percent(hits_NK[:, k]) for k in range(num_crops)),
        top1_random=_percent(hits_NK.mean(1)),
        top1_mean=_percent((logits.averaged_N == logits.labels_N).double()),
        top1_any_right=_percent(hits_NK.amax(1)),
        shares=tuple((counts / counts.sum()).tolist()),
        entropy_of_mean=float(torch.special.entr(mean_choice_K).sum()),
        mean_entropy=float(torch.special.entr(logits.probabilities_NK.double()).sum(1).mean()),
        proposer_macs=proposer,
        classifier_macs=classifier * (num_crops if POLICIES[model.config.policy].averages else 1),
        top1_classes=tuple(_percent(hits_N[logits.labels_N == c]) for c in range(num_classes)),
        confusion=tuple(map(tuple, pairs.reshape(num_classes, num_classes).tolist())),
    )


def final_prediction(logits: CropLogits, policy: str) -> Tensor:
    """Give the class that the policy itself predicts for each sample, int64 `(N,)`."""
    if POLICIES[policy].averages:
        return logits.averaged_N
    return logits.predicted_NK.gather(1, logits.chosen_N[:, None])[:, 0]


def final_hits(logits: CropLogits, policy: str) -> Tensor:
    """Give the chance that the policy itself is right on each sample, float64 `(N,)`.

    It is 0 or 1, except for the policy `random`: its score is the expectation over the K crops, not
    one draw.
    """
    if POLICIES[policy].is_random:
        return logits.right_NK.double().mean(1)
    return (final_prediction(logits, policy) == logits.labels_N).double()


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.mean()) if len(hits) else 0.0
