from collections.abc import Callable

import pytest

from pipeline.format.crops import place_crops
from training.config import TrainConfig
from training.model.classifier import SelectiveClassifier
from training.score.cost import count_macs


def make_model(
    config: TrainConfig, *, canvas: int = 48, crop: int = 32, glimpse: int = 16, classes: int = 3
) -> SelectiveClassifier:
    plan = place_crops("full+five", canvas_px=canvas, crop_px=crop)
    return SelectiveClassifier(config, plan=plan, num_classes=classes, glimpse_px=glimpse)


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
