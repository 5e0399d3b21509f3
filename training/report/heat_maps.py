"""Draw a proposer's maps over canvases, all on one scale.

Axes: B samples, M and N rows and columns of a map.
"""

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.report.html import data_uri

COLOURS = "magma"  # perceptually ordered: dark is low, bright is high
ENDS = (1, 99)  # percentiles of the maps at the ends of the colours: single cells do not decide
FLAT = 1e-12  # logits between the ends of constant maps
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


def scale_of(maps_BMN: Tensor) -> tuple[NDArray[np.float32], float, float]:
    """Centre each map on its own mean; give them with the low and high end of their scale."""
    centred = (maps_BMN - maps_BMN.mean((1, 2), keepdim=True)).numpy()
    low, high = (float(end) for end in np.percentile(centred, ENDS))
    return centred, low, high


def enlarge(map_MN: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Upsample a map bilinearly to a width and a height, px."""
    picture = Image.fromarray(map_MN.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def colour(share: NDArray[np.float32]) -> Image.Image:
    """Colour shares, 0 to 1 from the low to the high end of the scale, as RGB."""
    rgba = mpl.colormaps[COLOURS](share, bytes=True)
    return Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
