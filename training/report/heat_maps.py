"""Draw a proposer's maps over canvases, all on one scale.

Axes: B samples, M and N rows and columns of a map.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from training.report.html import data_uri
from training.score.pictures import FLAT, colour, enlarge, scale_of

HEAT_PX = 36  # a browser smooths the rest; a map has 8 x 8 cells or so
LEGEND_PX = (256, 1)


class HeatMaps(NamedTuple):
    """Maps drawn on one scale, as data URIs.

    Each map is centred on its own mean, since a choice depends on differences within an image
    alone. `low` and `high` are the ends of the scale, logits; values beyond them are clipped.
    """

    images: tuple[str, ...]
    legend: str
    low: float
    high: float


def draw_heat(maps_BMN: Tensor) -> HeatMaps:
    """Draw opaque maps, all on one scale, upsampled bilinearly; a page lays them over canvases."""
    centred, low, high = scale_of(maps_BMN)
    shares = np.clip((centred - low) / max(high - low, FLAT), 0, 1)
    strip = np.linspace(0, 1, LEGEND_PX[0], dtype=np.float32)[None]
    fine = (enlarge(share, (HEAT_PX, HEAT_PX)) for share in shares)
    return HeatMaps(
        images=tuple(data_uri(colour(share).quantize(), "PNG", optimize=True) for share in fine),
        legend=data_uri(colour(strip), "PNG"),
        low=low,
        high=high,
    )
