import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.audit.priced import (
    Offer,
    PricedPoint,
    at_price,
    check_canvases,
    doubts,
    make_offer,
)
from training.config import TrainConfig
from training.data.processes import Process
from training.run.state import build_model
from training.saved.folder import RunPaths
from training.saved.record import RunRecord
from training.score.crop_logits import CropLogits

Tiny = Callable[..., TrainConfig]
CROP_MACS, CANVAS_MACS = 500_000_000, 2_500_000_000


def offer_of(chances: list[list[float]], crop: list[bool], canvas: list[bool]) -> Offer:
    """Images of class 0, of whose chosen crop and canvas it is said whether they are seen so."""
    probabilities_NK = torch.tensor(chances, dtype=torch.float64)
    predicted_NK = torch.ones(probabilities_NK.shape, dtype=torch.int64)
    predicted_NK[torch.arange(len(crop)), probabilities_NK.argmax(1)] = (~torch.tensor(crop)).long()
    logits = CropLogits(
        labels_N=torch.zeros(len(crop), dtype=torch.int64),
        logits_NKC=F.one_hot(predicted_NK, 2).float(),
        probabilities_NK=probabilities_NK,
    )
    return Offer(logits, (~torch.tensor(canvas)).long(), CROP_MACS, CANVAS_MACS)


def drawn(num_samples: int = 300, seed: int = 0, *, sure: int = 0) -> Offer:
    """Doubts and answers by chance; the first images are sure."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.randn((num_samples, 4), generator=generator, dtype=torch.float64).softmax(1)
    chances[:sure] = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    answers = torch.rand((2, num_samples), generator=generator) < torch.tensor([[0.5], [0.7]])
    return offer_of(chances.tolist(), answers[0].tolist(), answers[1].tolist())


def test_the_rule_by_hand() -> None:
    # Doubts of 0.4, 0.2 and 0; a GMAC costs the price, and the canvas takes two more of them.
    offer = offer_of(
        [[0.6, 0.4], [0.2, 0.8], [1.0, 0.0]], [False, True, False], [True, False, True]
    )
    assert doubts(offer.logits).tolist() == pytest.approx([0.4, 0.2, 0])
    third = 100 / 3
    never, dear, middle, cheap, free = (
        at_price(offer, price) for price in (math.inf, 0.21, 0.15, 0.05, 0)
    )
    assert never == PricedPoint(math.inf, pytest.approx(third), CROP_MACS, 0)
    assert dear == replace(never, price=0.21)
    assert middle.top1 == pytest.approx(2 * third)
    assert middle.macs == pytest.approx((2 * CROP_MACS + CANVAS_MACS) / 3)
    assert middle.share == pytest.approx(1 / 3)
    assert (cheap.top1, cheap.share) == pytest.approx((third, 2 / 3))
    assert cheap.macs == pytest.approx((CROP_MACS + 2 * CANVAS_MACS) / 3)
    assert free == replace(cheap, price=0)  # without doubt the canvas is not used at price 0


def test_a_doubt_near_nothing_is_not_lost_to_rounding() -> None:
    sure = torch.tensor([[1.0, 1e-12]])
    logits = replace(drawn(1).logits, probabilities_NK=sure)
    assert doubts(logits).tolist() == pytest.approx([1e-12])


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_price_uses_no_more_canvases(one: float, other: float) -> None:
    cheap, dear = (at_price(drawn(40), price) for price in sorted((one, other)))
    assert dear.share <= cheap.share
    assert dear.macs <= cheap.macs


@pytest.mark.parametrize("price", [-0.1, math.nan, -math.inf])
def test_a_price_below_nothing_is_refused(price: float) -> None:
    with pytest.raises(ConfigError, match=r"--price must be at least 0; got .*Use 0 to inf\."):
        at_price(drawn(5), price)


def test_infinity_is_null_in_json() -> None:
    text = json.dumps(at_price(drawn(5), math.inf).to_json(), allow_nan=False)
    assert json.loads(text)["price"] is None
    assert PricedPoint(0.5, 1, 2, 3).to_json()["price"] == 0.5


def test_canvases_are_classified_as_they_are_stored(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(), opened, alone).eval()
    predicted_N = make_offer(model, opened, process=alone).canvas_N
    assert len(predicted_N) == 29
    reader, plan = opened.reader("val"), opened.crop_layout
    with torch.inference_mode():
        for index in (0, 5, 28):
            canvas = torch.zeros((1, 48, 48, 3), dtype=torch.uint8)
            sample = reader.read(index)
            for k, box in enumerate(plan.boxes):
                if plan.is_cut(k):  # the four corners cover all of the canvas
                    crop_HWC = torch.tensor(sample.crops[k]).permute(1, 2, 0)
                    canvas[0, box.y0 : box.y1, box.x0 : box.x1] = crop_HWC
            assert predicted_N[index] == model.logits(canvas).argmax(1)[0]


def test_a_canvas_costs_what_torch_counts_and_both_costs_hold_the_proposers(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(model="resnet18"), opened, alone)
    offer = make_offer(model, opened, process=alone)
    # ResNet18 halves 32 px five times to 1 and 48 px to 2: more than the square of the sides.
    assert 1.5**2 < offer.canvas_macs / offer.crop_macs < 2**2
    assert at_price(offer, math.inf).macs == offer.crop_macs
    assert at_price(offer, 0).macs == pytest.approx(offer.canvas_macs)


def test_what_cannot_be_priced_says_why(
    opened: ShardFolder, scene_tensors: Path, alone: Process, tiny: Tiny
) -> None:
    with pytest.raises(ConfigError, match=r"needs shards that hold canvases; got --layout tensors"):
        check_canvases(build_model(tiny(), opened, alone), ShardFolder.open(scene_tensors))
    with pytest.raises(ConfigError, match=r"needs a run that chooses.*got --policy whole"):
        check_canvases(build_model(tiny(policy="whole"), opened, alone), opened)
    fixed = build_model(tiny(), opened, alone)
    fixed.classifier = OnlyCrops()
    with pytest.raises(ConfigError, match=r"takes images of more than one size; got Input height"):
        check_canvases(fixed, opened)
    manifest = replace(opened.manifest, spec=replace(opened.manifest.spec, canvas_size=32))
    with pytest.raises(ConfigError, match=r"must be larger than a crop; got 32 px"):
        check_canvases(fixed, replace(opened, manifest=manifest))


class OnlyCrops(torch.nn.Module):
    """A classifier that takes one size of image, as timm's vision transformers do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == 32, "Input height doesn't match model"
        return torch.zeros(len(images), 10)


def test_evaluate_scores_at_one_price(
    finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any]
) -> None:
    paths, record = finished
    assert record.evaluation is not None
    words = ("evaluate", paths.folder, "--device", "cpu", "--price")
    never = json.loads(srp_train(*words, "inf", "--json").stdout)
    assert never["top1"] == record.evaluation.top1 == never["priced"]["top1"]
    assert (never["priced"]["price"], never["priced"]["share"]) == (None, 0)
    cost = record.evaluation.proposer_macs + record.evaluation.classifier_macs
    assert never["priced"]["macs"] == cost
    always = srp_train(*words, "0")
    assert always.exit_code == 0, always.output
    assert "the whole canvas at a price of 0\n" in always.stdout
    assert re.search(r"^  images that use the canvas, % +100\.00$", always.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("price", "reason"), [("-1", "--price must be at least 0; got -1.0."), ("nan", "got nan")]
)
def test_a_bad_price_ends_before_anything_is_scored(
    price: str, reason: str, finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any]
) -> None:
    result = srp_train("evaluate", finished[0].folder, "--price", price, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr
    assert "scoring" not in result.stderr


def test_a_price_on_shards_without_canvases_is_one_line(
    finished: tuple[RunPaths, RunRecord], scene_tensors: Path, srp_train: Callable[..., Any]
) -> None:
    result = srp_train(
        "evaluate", finished[0].folder, "--shards", scene_tensors, "--price", "1", "--device", "cpu"
    )
    assert result.exit_code == 2
    assert "Build shards with --layout canvas." in result.stderr
