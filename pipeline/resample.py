"""Resize and gray as the installed Pillow does them, at several times its speed where possible.

`kernels` repeats Pillow's arithmetic; `is_exact` compares the two. Where they differ, because
Pillow is older or is pillow-simd, Pillow does the work.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def gray(image_HWC: Pixels) -> Pixels:
    """Take Pillow's ITU-R 601-2 luma in integers, uint8 `(H, W)`."""
    from pipeline import kernels

    luma_HW = np.empty(image_HWC.shape[:2], np.uint8)
    kernels.luma(np.ascontiguousarray(image_HWC), luma_HW)
    return luma_HW


def resize(image_HWC: Pixels, side_px: int) -> Pixels:
    """Resize to a square as the installed Pillow's bilinear filter does.

    Args:
        image_HWC: Uint8 `(H, W, 3)`; views with any strides will do.
        side_px: Side of the square, px.

    Returns:
        Uint8 `(side, side, 3)`; the image itself if it has that size already.
    """
    if image_HWC.shape[:2] == (side_px, side_px):
        return image_HWC
    return (
        resize_exactly(image_HWC, side_px) if is_exact() else _resize_in_pillow(image_HWC, side_px)
    )


def resize_exactly(image_HWC: Pixels, side_px: int) -> Pixels:
    """Resize as Pillow 13 does, whatever Pillow is installed; arguments as for `resize`."""
    from pipeline import kernels

    image_HWC = np.ascontiguousarray(image_HWC)
    height, width, _ = image_HWC.shape
    out = np.empty((side_px, 3 * side_px), np.uint8)
    if goes_down_first(height, width, side_px):
        low = np.empty((side_px, width, 3), np.uint8)
        kernels.down(image_HWC.reshape(height, -1), low.reshape(side_px, -1))
        kernels.across(low, out)
    else:
        narrow = np.empty((height, 3 * side_px), np.uint8)
        kernels.across(image_HWC, narrow)
        kernels.down(narrow, out)
    return out.reshape(side_px, side_px, 3)


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
    from pipeline import kernels

    out = np.empty((len(corners), side_px, 3 * side_px), np.uint8)
    canvas_HWC = np.ascontiguousarray(canvas_HWC)
    kernels.windows(canvas_HWC, np.array(corners, np.int64).reshape(-1, 2), crop_px, out)
    return out.reshape(len(corners), side_px, side_px, 3)


def goes_down_first(height: int, width: int, side_px: int) -> bool:
    """Say which pass Pillow runs first; the rounding in between makes it visible.

    Source: python-pillow/Pillow#9549, in Pillow 13: down first where the height shrinks by more
    than twice as much as the width.
    """
    return height - side_px > 2 * max(width - side_px, 0)


def _resize_in_pillow(image_HWC: Pixels, side_px: int) -> Pixels:
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR))


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
        np.array_equal(resize_exactly(image, side), _resize_in_pillow(image, side))
        for image, side in probes
    )


def edge_weight(num_in: int, num_out: int) -> float:
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
