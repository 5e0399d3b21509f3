import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.format.crops import place_crops
from training.config import TrainConfig
from training.model.classifier import SelectiveClassifier
from training.score.cost import count_macs
from training.score.crop_logits import Table
from training.score.metrics import Evaluation, final_prediction, summarise

NAMES = ("full", "top-left", "bottom-left", "centre")
SAMPLES, CROPS, CLASSES = 23, len(NAMES), 3


@pytest.fixture
def table() -> Table:
    generator = torch.Generator().manual_seed(11)

    def classes(*shape: int) -> torch.Tensor:
        return torch.randint(0, CLASSES, shape, generator=generator)

    return Table(
        labels_N=classes(SAMPLES),
        predicted_NK=classes(SAMPLES, CROPS),
        losses_NK=torch.rand(SAMPLES, CROPS, generator=generator),
        averaged_N=classes(SAMPLES),
        probabilities_NK=torch.randn(SAMPLES, CROPS, generator=generator).softmax(1),
    )


def make_model(
    config: TrainConfig, *, canvas: int = 48, crop: int = 32, glimpse: int = 16, classes: int = 3
) -> SelectiveClassifier:
    plan = place_crops("full+five", canvas_px=canvas, crop_px=crop)
    return SelectiveClassifier(config, plan=plan, num_classes=classes, glimpse_px=glimpse)


@pytest.fixture
def figures(tiny: Callable[..., TrainConfig], table: Table) -> Callable[[str], Evaluation]:
    def make(policy: str) -> Evaluation:
        model = make_model(tiny(policy=policy, candidates=",".join(NAMES)))
        return summarise(table, model)

    return make


def test_figures_equal_brute_force(table: Table, figures: Callable[[str], Evaluation]) -> None:
    found = figures("straight-through")
    labels, predicted = table.labels_N.tolist(), table.predicted_NK.tolist()
    chances = table.probabilities_NK.tolist()
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
    assert found.top1_mean == percent((table.averaged_N == table.labels_N).tolist())
    for k in range(CROPS):
        assert found.top1_crops[k] == percent([row[k] for row in hits])
        assert found.shares[k] == pytest.approx(chosen.count(k) / SAMPLES)
    assert sum(found.shares) == pytest.approx(1)
    mean = [sum(column) / SAMPLES for column in zip(*chances, strict=True)]
    assert found.entropy_of_mean == pytest.approx(entropy(mean), rel=1e-5)
    assert found.mean_entropy == pytest.approx(sum(map(entropy, chances)) / SAMPLES, rel=1e-5)


def test_per_class_figures_and_the_confusion_equal_brute_force(
    table: Table, figures: Callable[[str], Evaluation]
) -> None:
    found = figures("blend")
    final = final_prediction(table, "blend").tolist()
    pairs = list(zip(table.labels_N.tolist(), final, strict=True))
    for true in range(CLASSES):
        right = [guess == true for label, guess in pairs if label == true]
        assert found.top1_classes[true] == pytest.approx(100 * sum(right) / len(right))
        assert sum(found.confusion[true]) == len(right)
        for guess in range(CLASSES):
            assert found.confusion[true][guess] == pairs.count((true, guess))
    assert sum(map(sum, found.confusion)) == SAMPLES


def test_a_class_without_a_sample_counts_as_zero(
    table: Table, tiny: Callable[..., TrainConfig]
) -> None:
    model = make_model(tiny(candidates=",".join(NAMES)), classes=CLASSES + 1)
    found = summarise(table, model)
    assert found.top1_classes[CLASSES] == 0
    assert found.confusion[CLASSES] == (0,) * (CLASSES + 1)


def test_the_policy_mean_is_scored_on_the_average_and_pays_for_every_crop(
    table: Table, figures: Callable[[str], Evaluation]
) -> None:
    mean, other = figures("mean"), figures("centre")
    assert mean.top1 == mean.top1_mean
    assert torch.equal(final_prediction(table, "mean"), table.averaged_N)
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


def test_a_table_survives_its_file(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "table.safetensors", weights="")
    loaded = Table.load(tmp_path / "table.safetensors")
    for name, column in vars(table).items():
        assert torch.equal(getattr(loaded, name), column)


def test_macs_of_resnet18_are_the_published_ones_and_of_the_proposer_the_formulas(
    tiny: Callable[..., TrainConfig],
) -> None:
    config = tiny(model="resnet18", pad_glimpses=True)
    model = make_model(config, canvas=336, crop=224, glimpse=64, classes=1000)
    proposer, classifier = count_macs(model)
    assert classifier == pytest.approx(1.81e9, rel=0.005)
    # Output side squared, channels out, channels in, and the kernel's nine weights; then a score.
    one = 111**2 * 8 * 1 * 9 + 55**2 * 16 * 8 * 9 + 27**2 * 32 * 16 * 9 + 32 * 27**2
    assert proposer == 6 * one


def test_an_unpadded_glimpse_costs_less(tiny: Callable[..., TrainConfig]) -> None:
    padded, bare = (count_macs(make_model(tiny(pad_glimpses=pad)))[0] for pad in (True, False))
    assert bare == 6 * (7**2 * 8 * 9 + 3**2 * 16 * 8 * 9 + 32 * 16 * 9 + 32)
    assert bare < padded
