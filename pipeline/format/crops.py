"""Where the K candidate crops of a canvas lie, and how crops and glimpses are cut.

The reference is torchvision on PIL images: `Resize((C, C)) -> FiveCrop(c)` for the originals,
`Resize((c, c))` of the image itself for `full`, and `Resize((s, s)) -> Grayscale -> Pad` of each
crop for the glimpses. `resample` gives Pillow's own pixels, so the results are equal bit for bit.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline.common.errors import ConfigError
from pipeline.config import CANDIDATE_SETS
from pipeline.pixels import Pixels
from pipeline.pixels.resize import (
    SourceBox,
    gray,
    is_exact,
    resize,
    resize_boxes,
    resize_windows,
)

FIVE = ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
STRIPS = (
    "left-strip", "middle-strip", "right-strip",
    "upper-strip", "level-strip", "lower-strip",
)  # fmt: skip
GRID3 = (
    "top-left", "top", "top-right",
    "left", "centre", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
FULL = "full"
_MEMBERS = {"five": FIVE, "strips": STRIPS, "grid3": GRID3}


class Box(NamedTuple):
    """One candidate's place on the canvas, px; `x1` and `y1` are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, kw_only=True)
class CropLayout:
    """The K candidate boxes of one square canvas.

    The order is part of the shard format: axis K of every stored tensor follows it.
    """

    canvas_px: int
    crop_px: int
    names: tuple[str, ...]
    boxes: tuple[Box, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def is_cut(self, candidate: int) -> bool:
        """Whether a candidate is a plain window of the canvas, not a resized part of it."""
        box = self.boxes[candidate]
        return (box.x1 - box.x0, box.y1 - box.y0) == (self.crop_px, self.crop_px)

    @cached_property
    def resized(self) -> tuple[int, ...]:
        """Candidates whose pixels cannot be cut from the canvas, in order."""
        return tuple(k for k in range(len(self)) if not self.is_cut(k))

    def source_box(self, candidate: int, *, width: int, height: int) -> SourceBox:
        """Find a candidate in the image that the canvas is made of, px.

        Args:
            candidate: Index on axis K.
            width: Of the upright source image, px.
            height: The same, px.
        """
        box, side = self.boxes[candidate], self.canvas_px
        return (
            box.x0 * width / side,
            box.y0 * height / side,
            box.x1 * width / side,
            box.y1 * height / side,
        )

    def normalised(self) -> tuple[tuple[float, float, float, float], ...]:
        """Give the boxes as fractions of the canvas side, `(x0, y0, x1, y1)`."""
        side = self.canvas_px
        return tuple((b.x0 / side, b.y0 / side, b.x1 / side, b.y1 / side) for b in self.boxes)

    def indices(self, candidates: str) -> tuple[int, ...]:
        """Find some of these candidates on axis K.

        Args:
            candidates: A candidate set, or names of candidates joined by commas.

        Raises:
            ConfigError: If one is not among these.
        """
        is_set = candidates in CANDIDATE_SETS
        wanted = candidate_names(candidates) if is_set else candidates.split(",")
        missing = [name for name in wanted if name not in self.names]
        if missing:
            raise ConfigError(
                f"--candidates must be in the shards; got {candidates!r}, but they hold only "
                f"{', '.join(self.names)}. Name some of these, or build shards with "
                f"--candidates {candidates if is_set else 'full+grid3'}."
            )
        if len(set(wanted)) < len(wanted):
            raise ConfigError(
                f"--candidates must name each crop once; got {candidates!r}. Drop the repeats."
            )
        return tuple(self.names.index(name) for name in wanted)


def candidate_names(candidate_set: str) -> tuple[str, ...]:
    """List a candidate set's members in the order of axis K.

    Raises:
        ConfigError: If there is no such set.
    """
    if candidate_set not in CANDIDATE_SETS:
        raise ConfigError(
            f"--candidates must be one of {', '.join(CANDIDATE_SETS)}; got {candidate_set!r}."
        )
    with_full, _, members = candidate_set.rpartition("+")
    return (FULL, *_MEMBERS[members]) if with_full else _MEMBERS[members]


def place_crops(candidate_set: str, *, canvas_px: int, crop_px: int) -> CropLayout:
    """Place the candidates of one square canvas.

    Args:
        candidate_set: `five` (TL, TR, BL, BR, centre), `grid3` (nine windows, row by row, five of
            which are those of `five`) or `strips` (three vertical and three horizontal thirds,
            resized to the crop). `full+` in front of one puts the whole canvas, resized, first.
        canvas_px: Side of the canvas, px.
        crop_px: Side of every crop, px.

    Raises:
        ConfigError: If the crop exceeds the canvas or there is no such set.
    """
    if not 0 < crop_px <= canvas_px:
        raise ConfigError(
            f"crop size must fit the canvas; got --crop-size {crop_px} px for --canvas-size "
            f"{canvas_px} px. Lower --crop-size or raise --canvas-size."
        )
    names = candidate_names(candidate_set)
    if STRIPS[0] in names and canvas_px < 3:
        raise ConfigError(
            f"a canvas must have room for three strips; got --canvas-size {canvas_px} px for "
            f"--candidates {candidate_set}. Raise --canvas-size."
        )
    boxes = _places(canvas_px, crop_px)
    return CropLayout(
        canvas_px=canvas_px,
        crop_px=crop_px,
        names=names,
        boxes=tuple(boxes[name] for name in names),
    )


def _places(canvas_px: int, crop_px: int) -> dict[str, Box]:
    """Place every candidate of every set."""
    far = canvas_px - crop_px
    steps = (0, round(far / 2.0), far)  # torchvision's center_crop rounds half to even as well
    corners = [(x, y) for y in steps for x in steps]
    places = {
        name: Box(x, y, x + crop_px, y + crop_px)
        for name, (x, y) in zip(GRID3, corners, strict=True)
    }
    edges = [round(part * canvas_px / 3) for part in range(4)]
    thirds = list(itertools.pairwise(edges))
    upright = [Box(near, 0, far, canvas_px) for near, far in thirds]
    lying = [Box(0, near, canvas_px, far) for near, far in thirds]
    places |= dict(zip(STRIPS, upright + lying, strict=True))
    return places | {FULL: Box(0, 0, canvas_px, canvas_px)}


def cut(canvas_HWC: Pixels, box: Box) -> Pixels:
    """View one box of the canvas, `(h, w, 3)`; nothing is copied."""
    return canvas_HWC[box.y0 : box.y1, box.x0 : box.x1]


def resized_crops(source_HWC: Pixels, plan: CropLayout) -> Pixels:
    """Make the crops that are not plain windows of the canvas.

    They are resized once, from the source image: from the canvas they would be blurred twice.

    Args:
        source_HWC: The upright source image, uint8 `(height, width, 3)`, RGB.
        plan: Where the crops lie.

    Returns:
        Uint8 `(R, 3, crop, crop)` in the order of the plan, each bit for bit Pillow's
        `image.resize((crop, crop), BILINEAR, box)` with the box of `CropLayout.source_box`.
    """
    height, width, _ = source_HWC.shape
    shape = (len(plan.resized), 3, plan.crop_px, plan.crop_px)
    crops_RCHW = np.empty(shape, np.uint8)
    boxes = [plan.source_box(k, width=width, height=height) for k in plan.resized]
    for row, crop_HWC in enumerate(resize_boxes(source_HWC, plan.crop_px, boxes)):
        crops_RCHW[row] = crop_HWC.transpose(2, 0, 1)
    return crops_RCHW


def original_crops(
    canvas_HWC: Pixels, resized_RCHW: Pixels, plan: CropLayout, candidates: Iterable[int]
) -> list[Pixels]:
    """View the chosen candidates, each uint8 `(3, crop, crop)`; nothing is copied.

    Args:
        canvas_HWC: Uint8 `(C, C, 3)`, RGB.
        resized_RCHW: What `resized_crops` made of it.
        plan: Where the crops lie.
        candidates: Indices on axis K.
    """
    return [
        cut(canvas_HWC, plan.boxes[k]).transpose(2, 0, 1)
        if plan.is_cut(k)
        else resized_RCHW[plan.resized.index(k)]
        for k in candidates
    ]


def glimpse(crop_CHW: Pixels, glimpse_px: int) -> Pixels:
    """Make one crop small and gray, uint8 `(1, s, s)`, not yet padded.

    Args:
        crop_CHW: Uint8 `(3, crop, crop)`, RGB.
        glimpse_px: Side s of the glimpse, px.

    Source: torchvision's `Resize((s, s))` then `Grayscale()` on a PIL image: the colours are
    resized first, and gray is Pillow's ITU-R 601-2 luma in integers.
    """
    return gray(resize(crop_CHW.transpose(1, 2, 0), glimpse_px))[None]


def glimpses(crops_CHW: Iterable[Pixels], glimpse_px: int) -> Pixels:
    """Make a glimpse of each crop, uint8 `(K, 1, s, s)`, not yet padded."""
    return np.stack([glimpse(crop_CHW, glimpse_px) for crop_CHW in crops_CHW])


def canvas_glimpses(
    canvas_HWC: Pixels, resized_RCHW: Pixels, plan: CropLayout, glimpse_px: int
) -> Pixels:
    """Make a glimpse of every candidate, as `glimpses` does but several at a time.

    Args:
        canvas_HWC: Uint8 `(C, C, 3)`, RGB.
        resized_RCHW: What `resized_crops` made of it.
        plan: Where the crops lie.
        glimpse_px: Side s of the glimpses, px.

    Returns:
        Uint8 `(K, 1, s, s)`, not yet padded.
    """
    if not is_exact():
        crops = original_crops(canvas_HWC, resized_RCHW, plan, range(len(plan)))
        return glimpses(crops, glimpse_px)
    windows = [k for k in range(len(plan)) if plan.is_cut(k)]
    corners = [(plan.boxes[k].x0, plan.boxes[k].y0) for k in windows]
    small = np.empty((len(plan), 1, glimpse_px, glimpse_px), np.uint8)
    colours = resize_windows(canvas_HWC, corners, crop_px=plan.crop_px, side_px=glimpse_px)
    for k, colour in zip(windows, colours, strict=True):
        small[k, 0] = gray(colour)
    for k, crop_CHW in zip(plan.resized, resized_RCHW, strict=True):
        small[k] = glimpse(crop_CHW, glimpse_px)
    return small


def pad_glimpses(glimpses_K1ss: Pixels, side_px: int) -> Pixels:
    """Pad right and below with zeros to `(K, 1, side, side)`."""
    missing = side_px - glimpses_K1ss.shape[-1]
    return np.pad(glimpses_K1ss, ((0, 0), (0, 0), (0, missing), (0, missing)))
