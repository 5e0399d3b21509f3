"""What a proposer's map says of an image, and how it is drawn over the canvas.

Axes: B samples, L glimpses that are looked at, S glimpse px, M and N rows and columns of a map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.audit.boxes import Point
from training.data.shards import Shards
from training.model.classifier import SelectiveClassifier
from training.model.proposer import MapProposer
from training.report.html import data_uri
from training.run.processes import Process
from training.score.choices import glimpse_batches

FINE = 57  # cells a side of a map in which a peak is sought
WINDOW = FINE // 3  # of them, odd
COLOURS = "magma"  # perceptually ordered: dark is low, bright is high
OPACITY = 0.65
ENDS = (1, 99)  # percentiles of the maps at the ends of the colours, past single cells
FLAT = 1e-12  # logits between the ends of maps that say nothing
HEAT_PX = 108
LEGEND_PX = (256, 1)


class HeatMaps(NamedTuple):
    """Maps drawn on one scale, as data URIs.

    A map counts from its own mean, since a choice depends on differences within an image alone.
    `low` and `high` are the scale's ends, logits; what lies past them has the colours of the ends.
    """

    images: tuple[str, ...]
    legend: str
    low: float
    high: float


def read_maps(
    model: SelectiveClassifier, shards: Shards, rows: Sequence[int], process: Process
) -> Tensor | None:
    """Map some validation images, float32 `(B, M, N)` in logits; None for other proposers.

    Args:
        model: In evaluation mode.
        shards: To read from.
        rows: Samples of the split, in the order wanted.
        process: This one.
    """
    if not isinstance(model.proposer, MapProposer):
        return None
    glimpses = glimpse_batches(model, shards, process, split="val", rows=rows)
    return torch.cat([saliency_maps(model.proposer, seen_BLSS) for seen_BLSS in glimpses])


@torch.inference_mode()
def saliency_maps(proposer: MapProposer, glimpses_BLSS: Tensor) -> Tensor:
    """Map uint8 glimpses, float32 `(B, M, N)` in logits."""
    return proposer.saliency(glimpses_BLSS[:, 0].float() / 255).cpu()


def smoothed(maps_BMN: Tensor) -> Tensor:
    """Upsample maps bilinearly, and average over a window of a third of the sides.

    A crop's score averages many cells, so nothing in training makes a single one right. A map
    counts from its own mean, which it is taken for beyond the edges.

    Returns:
        Float32 `(B, 57, 57)`.
    """
    centred_B1MN = (maps_BMN - maps_BMN.mean((1, 2), keepdim=True))[:, None]
    fine = F.interpolate(centred_B1MN, size=(FINE, FINE), mode="bilinear", align_corners=False)
    return F.avg_pool2d(fine, WINDOW, stride=1, padding=WINDOW // 2)[:, 0]


def peaks(maps_BMN: Tensor) -> list[Point]:
    """Find the middle of each map's highest cell, the first of equals in reading order."""
    _, num_rows, num_columns = maps_BMN.shape
    places = maps_BMN.flatten(1).argmax(1).tolist()
    return [
        ((place % num_columns + 0.5) / num_columns, (place // num_columns + 0.5) / num_rows)
        for place in places
    ]


def draw_heat(maps_BMN: Tensor) -> HeatMaps:
    """Draw maps to lie over canvases, all on one scale, upsampled bilinearly."""
    centred = (maps_BMN - maps_BMN.mean((1, 2), keepdim=True)).numpy()
    low, high = (float(end) for end in np.percentile(centred, ENDS))
    shares = np.clip((centred - low) / max(high - low, FLAT), 0, 1)
    strip = np.linspace(0, 1, LEGEND_PX[0], dtype=np.float32)[None]
    return HeatMaps(
        images=tuple(data_uri(_colour(_enlarge(share)), "PNG") for share in shares),
        legend=data_uri(_colour(strip), "PNG"),
        low=low,
        high=high,
    )


def _enlarge(map_MN: NDArray[np.float32]) -> NDArray[np.float32]:
    picture = Image.fromarray(map_MN.astype(np.float32))
    return np.asarray(picture.resize((HEAT_PX, HEAT_PX), Image.Resampling.BILINEAR))


def _colour(share: NDArray[np.float32]) -> Image.Image:
    rgba = mpl.colormaps[COLOURS](share, alpha=OPACITY, bytes=True)
    return Image.fromarray(np.ascontiguousarray(rgba))
