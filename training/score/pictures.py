"""Draw what a run sees and chooses: canvases, crops, and the proposer's maps, coloured alike.

Axes: B samples, M and N rows and columns of a map, H and W px.
"""

import hashlib
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pipeline import CropLayout, Pixels
from training.data.shards import BatchReader
from training.model.classifier import SelectiveClassifier, autocast
from training.model.proposer import MapProposer

UNSEEN = (128, 128, 128)  # parts of the canvas outside every candidate
BOX = "#00b4ff"  # around the chosen crop
COLOURS = "magma"  # perceptually ordered: dark is low, bright is high
MAP_OPACITY = 0.4
ENDS = (1, 99)  # percentiles of the maps at the ends of the colours: single cells do not decide
FLAT = 1e-12  # logits between the ends of constant maps
SHOWN_PX = 192  # side of each canvas in a row of choices


def order_by_hash(keys: Sequence[str]) -> list[int]:
    """Order samples by the SHA-256 of their keys: the first few are a rule, not a pick."""
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=digests.__getitem__)


def canvas_picture(crops: Sequence[Pixels], plan: CropLayout) -> Image.Image:
    """Rebuild the canvas: resized candidates first, exact crops over them."""
    canvas = Image.new("RGB", (plan.canvas_px, plan.canvas_px), UNSEEN)
    for k in sorted(range(len(plan)), key=plan.is_cut):
        box = plan.boxes[k]
        size = (box.x1 - box.x0, box.y1 - box.y0)
        canvas.paste(crop_picture(crops[k]).resize(size), (box.x0, box.y0))
    return canvas


def crop_picture(crop_CHW: Pixels) -> Image.Image:
    """Make a picture of a crop, uint8 `(3, H, W)`."""
    return Image.fromarray(np.ascontiguousarray(crop_CHW.transpose(1, 2, 0)))


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


def heat(map_MN: Tensor, size: tuple[int, int]) -> Image.Image:
    """Colour a map, from its own lowest to its own highest cells, upsampled bilinearly.

    Args:
        map_MN: Logits, float32.
        size: Width and height of the picture, px.
    """
    centred_1MN, low, high = scale_of(map_MN[None])
    shares = np.clip((centred_1MN[0] - low) / max(high - low, FLAT), 0, 1)
    return colour(enlarge(shares, size))


@torch.inference_mode()
def draw_choices(
    model: SelectiveClassifier, plan: CropLayout, reader: BatchReader, *, num_images: int
) -> NDArray[np.uint8]:
    """Draw a row of canvases: the proposer's map over each, if it has one, the chosen box outlined.

    Args:
        model: Its proposer chooses; in evaluation mode.
        plan: The candidates that the shards hold.
        reader: Reads the split, with glimpses.
        num_images: The first by the hash of their keys, as in the pages.

    Returns:
        RGB, `(H, W, 3)`.
    """
    rows = order_by_hash(reader.reader.keys)[:num_images]
    batch = next(iter(reader.batches([np.array(rows)])))
    if model.proposer is None or batch.glimpses_BLSS is None:
        raise RuntimeError("choices of a run that chooses without a proposer")
    maps: Sequence[Tensor | None] = [None] * len(rows)
    with autocast(model.config, batch.labels_B.device):
        chosen = model.proposer(batch.glimpses_BLSS).chosen_B.tolist()
        if isinstance(model.proposer, MapProposer):
            maps = model.proposer.saliency(batch.glimpses_BLSS[:, 0].float() / 255).cpu().unbind()
    canvases = (canvas_picture(reader.reader.read(row).crops, plan) for row in rows)
    boxes = (plan.normalised()[model.candidates[crop]] for crop in chosen)
    return np.concatenate(
        [
            np.asarray(_choice_picture(canvas, box, heat_map))
            for canvas, box, heat_map in zip(canvases, boxes, maps, strict=True)
        ],
        axis=1,
    )


def _choice_picture(
    canvas: Image.Image, box: Sequence[float], map_MN: Tensor | None
) -> Image.Image:
    shown = canvas.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BILINEAR)
    if map_MN is not None:
        shown = Image.blend(shown, heat(map_MN, shown.size), MAP_OPACITY)
    x0, y0, x1, y1 = (round(edge * SHOWN_PX) for edge in box)
    ImageDraw.Draw(shown).rectangle((x0, y0, x1 - 1, y1 - 1), outline=BOX, width=3)
    return shown
