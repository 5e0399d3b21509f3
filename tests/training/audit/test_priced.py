import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from training.audit.priced import (
    MAX_POINTS,
    Offer,
    Priced,
    PricedPoint,
    at_price,
    doubts,
    few_points,
    gain_over_random,
    price_canvas,
    price_curve,
)
from training.score.crop_logits import Table
from training.study.finished import Spread

CROP_MACS, CANVAS_MACS = 500_000_000, 2_500_000_000


def offer_of(chances: list[list[float]], crop: list[bool], canvas: list[bool]) -> Offer:
    """Images of class 0, of whose chosen crop and canvas it is said whether they are seen so."""
    probabilities_NK = torch.tensor(chances, dtype=torch.float64)
    predicted_NK = torch.ones(probabilities_NK.shape, dtype=torch.int64)
    predicted_NK[torch.arange(len(crop)), probabilities_NK.argmax(1)] = (~torch.tensor(crop)).long()
    table = Table(
        labels_N=torch.zeros(len(crop), dtype=torch.int64),
        predicted_NK=predicted_NK,
        losses_NK=torch.zeros(probabilities_NK.shape),
        averaged_N=torch.zeros(len(crop), dtype=torch.int64),
        probabilities_NK=probabilities_NK,
    )
    return Offer(table, (~torch.tensor(canvas)).long(), CROP_MACS, CANVAS_MACS)


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
    assert doubts(offer.table).tolist() == pytest.approx([0.4, 0.2, 0])
    third = 100 / 3
    by_price = {price: at_price([offer], price) for price in (math.inf, 0.21, 0.15, 0.05, 0)}
    assert by_price[math.inf] == (math.inf, pytest.approx(third), CROP_MACS, 0)
    assert by_price[0.21] == by_price[math.inf]._replace(price=0.21)
    one = by_price[0.15]
    assert one[1:] == pytest.approx((2 * third, (2 * CROP_MACS + CANVAS_MACS) / 3, 1 / 3))
    both = by_price[0.05]
    assert both[1:] == pytest.approx((third, (CROP_MACS + 2 * CANVAS_MACS) / 3, 2 / 3))
    assert by_price[0] == both._replace(price=0)  # who does not doubt does not buy for nothing


def test_a_doubt_near_nothing_is_not_lost_to_rounding() -> None:
    sure = torch.tensor([[1.0, 1e-12]])
    table = drawn(1).table
    table = Table(**{**vars(table), "probabilities_NK": sure})
    assert doubts(table).tolist() == pytest.approx([1e-12])


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_dearer_buys_no_more(one: float, other: float) -> None:
    cheap, dear = (at_price([drawn(40)], price) for price in sorted((one, other)))
    assert dear.share <= cheap.share
    assert dear.macs <= cheap.macs


@pytest.mark.parametrize("price", [-0.1, math.nan, -math.inf])
def test_a_price_below_nothing_is_refused(price: float) -> None:
    with pytest.raises(ConfigError, match=r"--price must be at least 0; got .*Use 0 to inf\."):
        at_price([drawn(5)], price)


def test_the_curve_goes_from_none_to_all_that_doubt_and_lies_on_the_rule() -> None:
    offer = drawn(300, sure=30)
    curve = price_curve([offer])
    assert len(curve) == MAX_POINTS
    assert curve[0].share == 0
    assert (curve[-1].price, curve[-1].share) == (0, 0.9)
    assert list(curve) == [at_price([offer], point.price) for point in curve]
    shares = [point.share for point in curve]
    assert shares == sorted(shares)
    assert max(np.diff(shares)) < 0.03
    few = price_curve([drawn(7)])
    assert [round(7 * point.share) for point in few] == list(range(8))


def test_several_seeds_are_a_mean_at_each_price() -> None:
    offers = [drawn(50, seed) for seed in (0, 1)]
    points = [at_price([offer], 0.2) for offer in offers]
    both = at_price(offers, 0.2)
    assert both.top1 == pytest.approx((points[0].top1 + points[1].top1) / 2)
    assert both.macs == pytest.approx((points[0].macs + points[1].macs) / 2)


@pytest.mark.parametrize("sure", [0, 10])
def test_the_gain_is_the_area_between_the_curve_and_its_line(sure: int) -> None:
    offer = drawn(MAX_POINTS - 1, seed=3, sure=sure)  # few enough for a curve with every point
    curve = price_curve([offer])
    shares = np.array([point.share for point in curve]) / curve[-1].share
    heights = np.array([point.top1 for point in curve])
    line = heights[0] + shares * (heights[-1] - heights[0])
    gain, _ = gain_over_random(offer)
    assert gain == pytest.approx(np.trapezoid(heights - line, shares))


def test_the_chance_sd_is_that_of_doubts_dealt_at_random() -> None:
    offer = drawn(200, seed=5)
    _, told = gain_over_random(offer)
    generator = torch.Generator().manual_seed(1)
    gains = []
    for _ in range(600):
        # Crops answer as before; only who doubts whom changes.
        order = torch.randperm(200, generator=generator)
        chances = torch.stack([1 - torch.tensor(doubts(offer.table)), torch.tensor(
            doubts(offer.table))], 1)[order]  # fmt: skip
        crop = offer.table.predicted_NK.gather(1, offer.table.chosen_N[:, None])[:, 0] == 0
        chances = chances.sort(1, descending=True).values
        gains.append(gain_over_random(offer_of(
            chances.tolist(), crop.tolist(), (offer.canvas_N == 0).tolist()))[0])  # fmt: skip
    assert np.std(gains) == pytest.approx(told, rel=0.15)


def test_doubt_that_knows_gains_and_doubt_that_errs_loses() -> None:
    right = [False] * 50 + [True] * 50
    knows = [[0.6, 0.4]] * 50 + [[0.9, 0.1]] * 50
    found = price_canvas([offer_of(knows, right, [True] * 100)], canvas_px=48)
    assert found.gain.mean > 0
    assert found.verdict.startswith("Buying by doubt is above buying at random by +")
    lost = price_canvas([offer_of(knows[::-1], right, [True] * 100)], canvas_px=48)
    assert lost.gain.mean == pytest.approx(-found.gain.mean)
    assert lost.verdict.startswith("Buying by doubt is below buying at random by -")
    chance = price_canvas([drawn(300)], canvas_px=48)
    assert chance.verdict.endswith("which can be chance.")


def test_nobody_in_doubt_buys_nothing() -> None:
    found = price_canvas([drawn(20, sure=20)], canvas_px=48)
    assert [point.share for point in found.curve] == [0]
    assert found.gain == Spread(0, None)


def test_a_few_points_show_the_quarters() -> None:
    few = few_points(price_curve([drawn(300)]))
    assert [point.share for point in few] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.02)
    assert len(few_points(few[:1])) == 1


def test_infinity_is_null_in_json() -> None:
    text = json.dumps(at_price([drawn(5)], math.inf).to_json(), allow_nan=False)
    assert json.loads(text)["price"] is None
    assert PricedPoint(0.5, 1, 2, 3).to_json()["price"] == 0.5
    assert {"curve", "gain", "chance_sd"} <= Priced.__dataclass_fields__.keys()
