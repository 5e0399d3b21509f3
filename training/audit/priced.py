"""Buy the whole canvas where the proposer is in doubt: `srp-train evaluate --price`.

Beside the K crops stands a dearer option: the same classifier on the whole canvas at its own
resolution. The doubt of an image is 1 - max p. The canvas replaces the chosen crop where

    doubt > price * extra GMACs

so the price is the chance of a better crop that one more GMAC must promise: 0 buys wherever there
is any doubt, infinity never. Nothing is trained again. Axes: N samples, K candidates.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common.errors import ConfigError
from training.score.crop_logits import Table

Numbers = NDArray[np.float64]


class Offer(NamedTuple):
    """What a run says of every crop, with the whole canvas for sale beside them.

    `canvas_N` is int64, the class that the classifier sees in each canvas. `crop_macs` is the cost
    of one image with the chosen crop, `canvas_macs` with the canvas in its place; both include the
    proposer.
    """

    table: Table
    canvas_N: Tensor
    crop_macs: int
    canvas_macs: int


class PricedPoint(NamedTuple):
    """The accuracy at a price: top-1 in %, MACs an image (mean), and the share that buys."""

    price: float
    top1: float
    macs: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs; JSON has no infinity, so that price is null."""
        return self._asdict() | {"price": None if math.isinf(self.price) else self.price}


def at_price(offer: Offer, price: float) -> PricedPoint:
    """Score a policy that buys at one price.

    Args:
        offer: Of a run.
        price: Chance of a better crop that one more GMAC must promise; 0 to infinity.

    Raises:
        ConfigError: If the price is below 0.
    """
    check_price(price)
    table = offer.table
    extra_gmacs = (offer.canvas_macs - offer.crop_macs) / 1e9
    bought_N = doubts(table) / extra_gmacs > price
    crop_N = table.right_NK.gather(1, table.chosen_N[:, None])[:, 0].numpy()
    canvas_N = (offer.canvas_N == table.labels_N).numpy()
    share = float(bought_N.mean())
    return PricedPoint(
        price=price,
        top1=100 * float(np.where(bought_N, canvas_N, crop_N).mean()),
        macs=offer.crop_macs + share * (offer.canvas_macs - offer.crop_macs),
        share=share,
    )


def check_price(price: float) -> None:
    """Check a price before anything is scored for it.

    Raises:
        ConfigError: If it is below 0.
    """
    if not price >= 0:  # rejects NaN as well
        raise ConfigError(f"--price must be at least 0; got {price}. Use 0 to inf.")


def doubts(table: Table) -> Numbers:
    """Give 1 - max p of each image as the sum of the others, exact near 0, `(N,)`."""
    others_NK = table.probabilities_NK.double().scatter(1, table.chosen_N[:, None], 0)
    return others_NK.sum(1).numpy()
