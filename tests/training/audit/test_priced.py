import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from training.audit.priced import (
    Offer,
    PricedPoint,
    at_price,
    doubts,
)
from training.score.crop_logits import Table

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
    by_price = {price: at_price(offer, price) for price in (math.inf, 0.21, 0.15, 0.05, 0)}
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
