"""Resize and make gray exactly as the installed Pillow does, several times as fast if possible.

`kernels` repeats Pillow's arithmetic, and `is_exact` compares the two. If they differ, because
Pillow is older or is pillow-simd, Pillow does the work.
"""

import functools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.pixels import Pixels

SourceBox = tuple[float, float, float, float]  # left, upper, right, lower, px; as Pillow has them
Triangle = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]


def gray(image_HWC: Pixels) -> Pixels:
    """Compute Pillow's ITU-R 601-2 luma in integers, uint8 `(H, W)`."""
    from pipeline.pixels import kernels

    luma_HW = np.empty(image_HWC.shape[:2], np.uint8)
    kernels.luma(np.ascontiguousarray(image_HWC), luma_HW)
    return luma_HW


def resize(image_HWC: Pixels, side_px: int, box: SourceBox | None = None) -> Pixels:
    """Resize to a square as `Image.resize` of the installed Pillow does, bilinear.

    Args:
        image_HWC: Uint8 `(H, W, 3)`, with any strides.
        side_px: Side of the square, px.
        box: Part of the image to resize; by default all.

    Returns:
        Uint8 `(side, side, 3)`; the image itself if it has this size.
    """
    return resize_boxes(image_HWC, side_px, [box])[0]


def resize_boxes(
    image_HWC: Pixels, side_px: int, boxes: Sequence[SourceBox | None]
) -> list[Pixels]:
    """Resize several boxes of one image as `resize` does each."""
    if not boxes:
        return []
    height, width, _ = image_HWC.shape
    if is_exact():
        resized = partial(resize_exactly, image_HWC, side_px)
    else:  # Pillow takes the image into its own memory, once for all boxes
        resized = partial(_resize_in_pillow, _in_pillow(image_HWC), side_px)
    is_done = (height, width) == (side_px, side_px)
    return [
        image_HWC if is_done and box in (None, (0, 0, width, height)) else resized(box)
        for box in boxes
    ]


def resize_exactly(image_HWC: Pixels, side_px: int, box: SourceBox | None = None) -> Pixels:
    """Resize as Pillow 13 does, whichever Pillow is installed; arguments as for `resize`."""
    from pipeline.pixels import kernels

    height, width, _ = image_HWC.shape
    left, upper, right, lower = box or (0, 0, width, height)
    columns = kernels.triangle_weights(width, left, right, side_px)
    rows = kernels.triangle_weights(height, upper, lower, side_px)
    xs, ys = _reach(columns), _reach(rows)
    image_HWC = np.ascontiguousarray(image_HWC[ys, xs])
    columns, rows = _shifted(columns, xs.start), _shifted(rows, ys.start)
    out = np.empty((side_px, 3 * side_px), np.uint8)
    if goes_down_first(height, width, side_px):
        low = np.empty((side_px, image_HWC.shape[1], 3), np.uint8)
        kernels.down(image_HWC.reshape(len(image_HWC), -1), rows, low.reshape(side_px, -1))
        kernels.across(low, columns, out)
    else:
        narrow = np.empty((len(image_HWC), 3 * side_px), np.uint8)
        kernels.across(image_HWC, columns, narrow)
        kernels.down(narrow, rows, out)
    return out.reshape(side_px, side_px, 3)


def _reach(triangle: Triangle) -> slice:
    """Return the range of inputs that have a weight in any output."""
    starts, counts, _ = triangle
    return slice(int(starts[0]), int(starts[-1] + counts[-1]))


def _shifted(triangle: Triangle, first: int) -> Triangle:
    """Number the inputs from `first` on."""
    starts, counts, weights = triangle
    return starts - np.int32(first), counts, weights


def resize_windows(
    canvas_HWC: Pixels, corners: Sequence[tuple[int, int]], *, crop_px: int, side_px: int
) -> Pixels:
    """Resize square windows of a canvas as `resize_exactly` does, several at a time.

    Args:
        canvas_HWC: Uint8 `(H, W, 3)`.
        corners: Left and upper edge of each of K windows, px.
        crop_px: Side of the windows, px.
        side_px: Side of the results, px.

    Returns:
        Uint8 `(K, side, side, 3)`.
    """
    from pipeline.pixels import kernels

    lefts = sorted({left for left, _ in corners})
    places = np.array([(lefts.index(left), upper) for left, upper in corners], np.int64)
    out = np.empty((len(corners), side_px, 3 * side_px), np.uint8)
    canvas_HWC = np.ascontiguousarray(canvas_HWC)
    kernels.windows(canvas_HWC, np.array(lefts, np.int64), places.reshape(-1, 2), crop_px, out)
    return out.reshape(len(corners), side_px, side_px, 3)


def goes_down_first(height: int, width: int, side_px: int) -> bool:
    """Whether Pillow resizes the height first; the rounding between the passes makes it visible.

    Source: python-pillow/Pillow#9549, in Pillow 13: height first if it shrinks by more than twice
    as much as the width. The whole image decides, even if only a box of it is resized.
    """
    return height - side_px > 2 * max(width - side_px, 0)


def _in_pillow(image_HWC: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image_HWC))


def _resize_in_pillow(image: Image.Image, side_px: int, box: SourceBox | None) -> Pixels:
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR, box))


@functools.cache
def is_exact() -> bool:
    """Whether the installed Pillow gives the same pixels as `resize_exactly`.

    Pillow before 13 has one order of passes, and pillow-simd rounds its weights to 16 bits.
    """
    rng = np.random.default_rng(0)
    shapes = ((40, 30, 36), (31, 53, 20), (53, 31, 20), (24, 24, 36), (300, 9, 8), (9, 300, 8))
    probes = ((rng.integers(0, 256, (h, w, 3), np.uint8), side) for h, w, side in shapes)
    return all(
        np.array_equal(
            resize_exactly(image, side, box), _resize_in_pillow(_in_pillow(image), side, box)
        )
        for image, side in probes
        for box in (None, (image.shape[1] / 3, 0, 2 * image.shape[1] / 3, image.shape[0]))
    )


def edge_weight(num_in: float, num_out: int) -> float:
    """Compute the edge pixel's weight in the correction of DALI's first and last output.

    When it shrinks an image, DALI repeats the edge pixel beyond the edge, and Pillow leaves those
    taps out. With a share r of repeated pixels, Pillow's value is DALI's plus r / (1 - r) times its
    distance from the edge pixel.
    """
    scale = num_in / num_out
    if scale <= 1:
        return 0.0
    taps = np.arange(-2 * math.ceil(scale) - 2, 2 * math.ceil(scale) + 2)
    weights = np.maximum(0, 1 - np.abs((taps + 0.5 - scale / 2) / scale))
    repeated = float(weights[taps < 0].sum() / weights.sum())
    # A single output reaches over both ends, so the share counts twice.
    return repeated / (1 - (2 if num_out == 1 else 1) * repeated)
