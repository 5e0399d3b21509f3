"""Resize and gray as the installed Pillow does them, at several times its speed where possible.

`kernels` repeats Pillow's arithmetic; `is_exact` compares the two. Where they differ, because
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
    """Take Pillow's ITU-R 601-2 luma in integers, uint8 `(H, W)`."""
    from pipeline.pixels import kernels

    luma_HW = np.empty(image_HWC.shape[:2], np.uint8)
    kernels.luma(np.ascontiguousarray(image_HWC), luma_HW)
    return luma_HW


def resize(image_HWC: Pixels, side_px: int, box: SourceBox | None = None) -> Pixels:
    """Resize to a square as `Image.resize` of the installed Pillow does, bilinear.

    Args:
        image_HWC: Uint8 `(H, W, 3)`; views with any strides will do.
        side_px: Side of the square, px.
        box: What to resize; the whole image by default.

    Returns:
        Uint8 `(side, side, 3)`; the image itself if it is that already.
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
    """Resize as Pillow 13 does, whatever Pillow is installed; arguments as for `resize`."""
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
    """Say which inputs have a weight in any output."""
    starts, counts, _ = triangle
    return slice(int(starts[0]), int(starts[-1] + counts[-1]))


def _shifted(triangle: Triangle, first: int) -> Triangle:
    """Count inputs from `first` on."""
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
        side_px: Side that they get, px.

    Returns:
        Uint8 `(K, side, side, 3)`.
    """
    from pipeline.pixels import kernels

    out = np.empty((len(corners), side_px, 3 * side_px), np.uint8)
    canvas_HWC = np.ascontiguousarray(canvas_HWC)
    kernels.windows(canvas_HWC, np.array(corners, np.int64).reshape(-1, 2), crop_px, out)
    return out.reshape(len(corners), side_px, side_px, 3)


def goes_down_first(height: int, width: int, side_px: int) -> bool:
    """Say which pass Pillow runs first; the rounding in between makes it visible.

    Source: python-pillow/Pillow#9549, in Pillow 13: down first where the height shrinks by more
    than twice as much as the width. It goes by the whole image, also where a box of it is resized.
    """
    return height - side_px > 2 * max(width - side_px, 0)


def _in_pillow(image_HWC: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image_HWC))


def _resize_in_pillow(image: Image.Image, side_px: int, box: SourceBox | None) -> Pixels:
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR, box))


@functools.cache
def is_exact() -> bool:
    """Whether the installed Pillow gives these very pixels; others are left to do it themselves.

    Pillow before 13 ran its passes in one order only, and pillow-simd rounds its weights to 16
    bits.
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
    """Weigh the edge pixel that must come off the first and the last output of DALI's passes.

    Where one shrinks, DALI repeats the edge pixel beyond the edge, and Pillow leaves those taps
    out: with a share r of repeated pixels, Pillow's value is DALI's plus r / (1 - r) times its
    distance from the edge pixel.
    """
    scale = num_in / num_out
    if scale <= 1:
        return 0.0
    taps = np.arange(-2 * math.ceil(scale) - 2, 2 * math.ceil(scale) + 2)
    weights = np.maximum(0, 1 - np.abs((taps + 0.5 - scale / 2) / scale))
    repeated = float(weights[taps < 0].sum() / weights.sum())
    # A single output hangs over both ends, and so loses the share twice.
    return repeated / (1 - (2 if num_out == 1 else 1) * repeated)
