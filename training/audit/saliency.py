"""The map of a proposer over an image, and its highest point.

Axes: B samples, L glimpses, S glimpse px, M and N rows and columns of a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import ShardFolder
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.model.proposer import MapProposer
from training.score.choices import glimpse_batches

Point = tuple[float, float]
"""x and y as fractions of the image's sides."""

FINE = 57  # cells a side of a map in which a peak is sought
WINDOW = FINE // 3  # of them, odd


def read_maps(
    model: SelectiveClassifier, shards: ShardFolder, rows: Sequence[int], process: Process
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

    A crop's score averages many cells, so training makes no single cell right. Each map is centred
    on its own mean, which is also its value beyond the edges.

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
