"""One knob between accuracy and compute: the whole canvas, bought where the proposer doubts.

Beside the K crops stands one dearer option, the classifier on the whole canvas at its own
resolution. The doubt of an image is 1 - max p. The canvas is bought, in place of the crop, where

    doubt > price * extra GMACs

so the price is the chance of a better crop that one GMAC more must promise: 0 buys wherever there
is any doubt, infinity never. Nothing is trained again. Axes: N samples, K candidates.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common.errors import ConfigError
from training.score.crop_logits import Table
from training.study.finished import Spread, spread

MAX_POINTS = 50  # of a curve
CHANCE = 1.96  # sds within which 95 % of chance gains lie

Numbers = NDArray[np.float64]


class Offer(NamedTuple):
    """What a run says of every crop, with the whole canvas for sale beside them.

    `canvas_N` is int64, the class that the classifier sees in each canvas. `crop_macs` are what
    one image costs with the chosen crop, `canvas_macs`, which must be more, with the canvas in its
    place; both hold the proposer's.
    """

    table: Table
    canvas_N: Tensor
    crop_macs: int
    canvas_macs: int


class PricedPoint(NamedTuple):
    """What choosing reaches at a price: top-1 in %, MACs an image, and the share that bought.

    `top1` and `macs` are means over the images, and over runs where there are several.
    """

    price: float
    top1: float
    macs: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs; JSON has no infinity, so that price is null."""
        return self._asdict() | {"price": None if math.isinf(self.price) else self.price}


@dataclass(frozen=True, kw_only=True)
class Priced:
    """What the priced canvas brings an arm.

    Attributes:
        canvas_px: Side of the canvas.
        crop_macs: For one image with the chosen crop, proposer included.
        canvas_macs: The same with the canvas in its place.
        curve: From a price at which none buys to 0, at which all that doubt do.
        gain: Points that the curve lies above the straight line between its ends, which is what
            buying at random would give; mean over the line, and over seeds.
        chance_sd: Of the gain, if the doubts were dealt to the images at random; points.
    """

    canvas_px: int
    crop_macs: int
    canvas_macs: int
    curve: tuple[PricedPoint, ...]
    gain: Spread
    chance_sd: float

    @property
    def verdict(self) -> str:
        """Say in one sentence whether doubt tells where to buy."""
        told = f"by {self.gain.mean:+.2f} points on average (chance sd {self.chance_sd:.2f})"
        if abs(self.gain.mean) <= CHANCE * self.chance_sd:
            return f"Buying by doubt differs from buying at random {told}, which can be chance."
        if self.gain.mean > 0:
            return f"Buying by doubt is above buying at random {told}."
        return f"Buying by doubt is below buying at random {told}: buy at random, or not."


def price_canvas(offers: Sequence[Offer], *, canvas_px: int) -> Priced:
    """Work out the whole curve, and whether it is worth more than chance.

    Args:
        offers: Of the seeds of an arm, at least one.
        canvas_px: Side of the canvas.
    """
    gains = [gain_over_random(offer) for offer in offers]
    return Priced(
        canvas_px=canvas_px,
        crop_macs=offers[0].crop_macs,
        canvas_macs=offers[0].canvas_macs,
        curve=price_curve(offers),
        gain=spread(gain for gain, _ in gains),
        # Seeds share their images; the mean's sd is at most the mean of the sds.
        chance_sd=statistics.fmean(sd for _, sd in gains),
    )


def at_price(offers: Sequence[Offer], price: float) -> PricedPoint:
    """Score a policy that buys at one price.

    Args:
        offers: Of the seeds of an arm, at least one.
        price: Chance of a better crop that one GMAC more must promise; 0 to infinity.

    Raises:
        ConfigError: If the price is below 0.
    """
    check_price(price)
    scores = [_score(offer, price) for offer in offers]
    top1, macs, share = (statistics.fmean(column) for column in zip(*scores, strict=True))
    return PricedPoint(price, top1, macs, share)


def check_price(price: float) -> None:
    """Check a price before anything is scored for it.

    Raises:
        ConfigError: If it is below 0.
    """
    if not price >= 0:  # a NaN is refused as well
        raise ConfigError(f"--price must be at least 0; got {price}. Use 0 to inf.")


def price_curve(offers: Sequence[Offer]) -> tuple[PricedPoint, ...]:
    """Score every price at which an image more buys, the dearest first.

    The straight line between both ends, from never to wherever there is doubt, is what buying for
    as many of these images at random would give: accuracy and MACs are means over images, so both
    grow by the share that buys.

    Returns:
        At most `MAX_POINTS`, evenly among all such prices, both ends with them.
    """
    prices = np.unique(np.concatenate([np.zeros(1), *(_worth(offer) for offer in offers)]))
    places = np.linspace(len(prices) - 1, 0, min(len(prices), MAX_POINTS)).round().astype(int)
    return tuple(at_price(offers, price) for price in prices[places].tolist())


def few_points(curve: Sequence[PricedPoint]) -> tuple[PricedPoint, ...]:
    """Pick the points nearest to none, a quarter, a half, three quarters and the most bought."""
    most = curve[-1].share
    wanted = [most * quarters / 4 for quarters in range(5)]
    picked = [min(curve, key=lambda point: abs(point.share - share)) for share in wanted]
    return tuple(dict.fromkeys(picked))


def gain_over_random(offer: Offer) -> tuple[float, float]:
    """Measure how far the whole curve, every price in it, lies above its straight line.

    Returns:
        Mean height over the line, points of top-1; and its sd if the doubts were dealt to the
        images at random, from the variance of a linear rank statistic.

    Source: Hajek and Sidak 1967, Theory of Rank Tests, II.3.1, for the variance.
    """
    worth_N = _worth(offer)
    doubted = worth_N > 0
    crop_N, canvas_N = _hits(offer)
    gains = (canvas_N - crop_N)[doubted]
    if len(gains) < 2:
        return 0.0, 0.0
    _, place, count = np.unique(worth_N[doubted], return_inverse=True, return_counts=True)
    # Images of one doubt buy at once, in the middle of their places; weights sum to 0.
    weights = ((count.cumsum() - count / 2) / len(gains) - 0.5)[place]
    points = 100 / len(worth_N)
    varied = (weights**2).sum() * ((gains - gains.mean()) ** 2).sum() / (len(gains) - 1)
    return points * float((weights * gains).sum()), points * math.sqrt(varied)


def _score(offer: Offer, price: float) -> tuple[float, float, float]:
    bought_N = _worth(offer) > price
    crop_N, canvas_N = _hits(offer)
    share = float(bought_N.mean())
    top1 = 100 * float(np.where(bought_N, canvas_N, crop_N).mean())
    return top1, offer.crop_macs + share * (offer.canvas_macs - offer.crop_macs), share


def _worth(offer: Offer) -> Numbers:
    """Give the price below which each image buys: its doubt for each GMAC more, `(N,)`."""
    return doubts(offer.table) / ((offer.canvas_macs - offer.crop_macs) / 1e9)


def doubts(table: Table) -> Numbers:
    """Give 1 - max p of each image as the sum of the others, exact near 0, `(N,)`."""
    others_NK = table.probabilities_NK.double().scatter(1, table.chosen_N[:, None], 0)
    return others_NK.sum(1).numpy()


def _hits(offer: Offer) -> tuple[Numbers, Numbers]:
    """Give 1 where the classifier is right, of the chosen crop and of the canvas, `(N,)` each."""
    table = offer.table
    crop_N = table.predicted_NK.gather(1, table.chosen_N[:, None])[:, 0]
    rights = (crop_N == table.labels_N, offer.canvas_N == table.labels_N)
    return rights[0].double().numpy(), rights[1].double().numpy()
