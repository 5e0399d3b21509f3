"""Pillow's antialiased bilinear resize and its gray, bit for bit, at several times its speed.

Pillow resizes in two passes of 22-bit fixed-point sums over 8-bit pixels, rounding in between;
the same integers added in the same order of passes give the same pixels. Here the inner loops
run over neighbouring bytes, so that LLVM makes vector instructions of them.

Source: Pillow's src/libImaging/Resample.c and Convert.c.
"""

import functools

import numba
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

_BITS = 22  # Pillow's PRECISION_BITS: 8-bit pixels times these sum up within 32 bits
_HALF = 1 << (_BITS - 1)
_BLOCK = 16  # rows that are resized side by side across; 48 bytes fill vector registers

# Numba's signatures: with them everything is compiled on import, once for each machine.
_WEIGHTS = "Tuple((int32[::1], int32[::1], int32[:, ::1]))(int64, int64)"
_DOWN = "void(Array(uint8, 2, 'A', readonly=True), uint8[:, ::1])"
_ACROSS = "void(Array(uint8, 3, 'A', readonly=True), uint8[:, :, ::1])"
_LUMA = "void(Array(uint8, 3, 'A', readonly=True), uint8[:, ::1])"


@numba.njit(_WEIGHTS, cache=True, nogil=True)
def _triangle(num_in, num_out):  # type: ignore[no-untyped-def]
    """Weigh the inputs of each output: first input, number of inputs, weights."""
    scale = num_in / num_out
    reach = max(scale, 1.0)
    starts = np.empty(num_out, np.int32)
    counts = np.empty(num_out, np.int32)
    weights = np.zeros((num_out, int(np.ceil(reach)) * 2 + 1), np.int32)
    shares = np.empty(weights.shape[1])
    for o in range(num_out):
        centre = (o + 0.5) * scale
        start = max(int(centre - reach + 0.5), 0)
        count = min(int(centre + reach + 0.5), num_in) - start
        total = 0.0
        for k in range(count):
            shares[k] = max(1.0 - abs((k + start - centre + 0.5) * (1.0 / reach)), 0.0)
            total += shares[k]
        for k in range(count):
            weights[o, k] = int(0.5 + shares[k] / total * (1 << _BITS))
        starts[o] = start
        counts[o] = count
    return starts, counts, weights


@numba.njit(_DOWN, cache=True, nogil=True)
def _down(rows, out):  # type: ignore[no-untyped-def]
    """Resize the first axis; the second holds whole rows of bytes."""
    starts, counts, weights = _triangle(rows.shape[0], out.shape[0])
    sums = np.empty(out.shape[1], np.int32)
    for o in range(out.shape[0]):
        sums[:] = _HALF
        for k in range(counts[o]):
            row = rows[starts[o] + k]
            weight = weights[o, k]
            for j in range(out.shape[1]):
                sums[j] += np.int32(row[j]) * weight
        for j in range(out.shape[1]):
            out[o, j] = min(sums[j] >> _BITS, 255)


@numba.njit(_ACROSS, cache=True, nogil=True)
def _across(image, out):  # type: ignore[no-untyped-def]
    """Resize the second axis of `(H, W, 3)`, turning a block of rows at a time on its side."""
    starts, counts, weights = _triangle(image.shape[1], out.shape[1])
    block = np.zeros((image.shape[1], 3 * _BLOCK), np.uint8)
    sums = np.empty(3 * _BLOCK, np.int32)
    for top in range(0, image.shape[0], _BLOCK):
        num_rows = min(_BLOCK, image.shape[0] - top)
        for y in range(num_rows):
            for x in range(image.shape[1]):
                block[x, 3 * y] = image[top + y, x, 0]
                block[x, 3 * y + 1] = image[top + y, x, 1]
                block[x, 3 * y + 2] = image[top + y, x, 2]
        for o in range(out.shape[1]):
            sums[:] = _HALF
            for k in range(counts[o]):
                weight = weights[o, k]
                x = starts[o] + k
                for j in range(3 * _BLOCK):
                    sums[j] += np.int32(block[x, j]) * weight
            for j in range(3 * _BLOCK):
                sums[j] = min(sums[j] >> _BITS, 255)
            for y in range(num_rows):
                out[top + y, o, 0] = sums[3 * y]
                out[top + y, o, 1] = sums[3 * y + 1]
                out[top + y, o, 2] = sums[3 * y + 2]


@numba.njit(_LUMA, cache=True, nogil=True)
def _luma(image, out):  # type: ignore[no-untyped-def]
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            out[y, x] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def gray(image_HWC: Pixels) -> Pixels:
    """Take Pillow's ITU-R 601-2 luma in integers, uint8 `(H, W)`."""
    luma_HW = np.empty(image_HWC.shape[:2], np.uint8)
    _luma(image_HWC, luma_HW)
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
    height, width, _ = image_HWC.shape
    out_SS3 = np.empty((side_px, side_px, 3), np.uint8)
    if _goes_down_first(height, width, side_px):
        narrow = np.empty((side_px, width, 3), np.uint8)
        _down(np.ascontiguousarray(image_HWC).reshape(height, -1), narrow.reshape(side_px, -1))
        _across(narrow, out_SS3)
    else:
        narrow = np.empty((height, side_px, 3), np.uint8)
        _across(image_HWC, narrow)
        _down(narrow.reshape(height, -1), out_SS3.reshape(side_px, -1))
    return out_SS3


def _goes_down_first(height: int, width: int, side_px: int) -> bool:
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
