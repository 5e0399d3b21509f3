import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.format.crops import place_crops
from training.config import TrainConfig
from training.model.classifier import SelectiveClassifier
from training.score.crop_logits import CropLogits
from training.score.metrics import Evaluation, final_prediction, summarise

NAMES = ("full", "top-left", "bottom-left", "centre")
SAMPLES, CROPS, CLASSES = 23, len(NAMES), 3


@pytest.fixture
def logits() -> CropLogits:
    generator = torch.Generator().manual_seed(11)
    return CropLogits(
        labels_N=torch.randint(0, CLASSES, (SAMPLES,), generator=generator),
        logits_NKC=torch.randn(SAMPLES, CROPS, CLASSES, generator=generator),
        probabilities_NK=torch.randn(SAMPLES, CROPS, generator=generator).softmax(1),
    )


def make_model(
    config: TrainConfig, *, canvas: int = 48, crop: int = 32, glimpse: int = 16, classes: int = 3
) -> SelectiveClassifier:
    plan = place_crops("full+five", canvas_px=canvas, crop_px=crop)
    return SelectiveClassifier(config, plan=plan, num_classes=classes, glimpse_px=glimpse)


@pytest.fixture
def figures(tiny: Callable[..., TrainConfig], logits: CropLogits) -> Callable[[str], Evaluation]:
    def make(policy: str) -> Evaluation:
        model = make_model(tiny(policy=policy, candidates=",".join(NAMES)))
        return summarise(logits, model)

    return make


def test_figures_equal_brute_force(
    logits: CropLogits, figures: Callable[[str], Evaluation]
) -> None:
    found = figures("straight-through")
    labels, predicted = logits.labels_N.tolist(), logits.predicted_NK.tolist()
    chances = logits.probabilities_NK.tolist()
    chosen = [row.index(max(row)) for row in chances]
    hits = [[p == label for p in row] for row, label in zip(predicted, labels, strict=True)]

    def percent(rights: list[Any]) -> Any:
        return pytest.approx(100 * sum(rights) / len(rights))

    def entropy(row: list[float]) -> float:
        return -sum(p * math.log(p) for p in row)

    assert found.crops == NAMES
    assert found.num_samples == SAMPLES
    assert found.top1 == percent([row[k] for row, k in zip(hits, chosen, strict=True)])
    assert found.top1_any_right == percent([any(row) for row in hits])
    assert found.top1_random == percent([sum(row) / CROPS for row in hits])
    assert found.top1_mean == percent((logits.averaged_N == logits.labels_N).tolist())
    for k in range(CROPS):
        assert found.top1_crops[k] == percent([row[k] for row in hits])
        assert found.shares[k] == pytest.approx(chosen.count(k) / SAMPLES)
    assert sum(found.shares) == pytest.approx(1)
    mean = [sum(column) / SAMPLES for column in zip(*chances, strict=True)]
    assert found.entropy_of_mean == pytest.approx(entropy(mean), rel=1e-5)
    assert found.mean_entropy == pytest.approx(sum(map(entropy, chances)) / SAMPLES, rel=1e-5)


def test_per_class_figures_and_the_confusion_equal_brute_force(
    logits: CropLogits, figures: Callable[[str], Evaluation]
) -> None:
    found = figures("blend")
    final = final_prediction(logits, "blend").tolist()
    pairs = list(zip(logits.labels_N.tolist(), final, strict=True))
    for true in range(CLASSES):
        right = [guess == true for label, guess in pairs if label == true]
        assert found.top1_classes[true] == pytest.approx(100 * sum(right) / len(right))
        assert sum(found.confusion[true]) == len(right)
        for guess in range(CLASSES):
            assert found.confusion[true][guess] == pairs.count((true, guess))
    assert sum(map(sum, found.confusion)) == SAMPLES


def test_a_class_without_a_sample_counts_as_zero(
    logits: CropLogits, tiny: Callable[..., TrainConfig]
) -> None:
    model = make_model(tiny(candidates=",".join(NAMES)), classes=CLASSES + 1)
    found = summarise(logits, model)
    assert found.top1_classes[CLASSES] == 0
    assert found.confusion[CLASSES] == (0,) * (CLASSES + 1)


def test_the_policy_mean_is_scored_on_the_average_and_pays_for_every_crop(
    logits: CropLogits, figures: Callable[[str], Evaluation]
) -> None:
    mean, other = figures("mean"), figures("centre")
    assert mean.top1 == mean.top1_mean
    assert torch.equal(final_prediction(logits, "mean"), logits.averaged_N)
    assert mean.classifier_macs == CROPS * other.classifier_macs
    assert mean.proposer_macs == 0


def test_the_policy_random_is_scored_on_the_exact_expectation(
    figures: Callable[[str], Evaluation],
) -> None:
    found = figures("random")
    assert found.top1 == found.top1_random == pytest.approx(sum(found.top1_crops) / CROPS)


def test_any_crop_right_is_no_worse_than_any_choice(figures: Callable[[str], Evaluation]) -> None:
    found = figures("straight-through")
    assert found.top1_any_right >= max(found.top1, found.top1_random, *found.top1_crops)
