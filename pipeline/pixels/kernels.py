"""Pillow's antialiased bilinear resize and its gray, and sums, compiled to vector instructions.

Pillow resizes in two passes of 22-bit fixed-point sums over 8-bit pixels, rounding in between;
the same integers added in the same order give the same pixels. Here the inner loops run over
neighbouring bytes, which LLVM turns into vector instructions. Numba caches the compiled code next
to this file, as Python does with its bytecode.

Importing numba takes a second, so `resize` imports this when the first image is resized, and
`codecs` after some hundred canvases.

Source: Pillow's src/libImaging/Resample.c and Convert.c.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_BITS = 22  # Pillow's PRECISION_BITS: 8-bit pixels times these sum up within 32 bits
_HALF = 1 << (_BITS - 1)
_BLOCK = 16  # rows that are resized side by side across; 48 bytes fill vector registers

# Numba's signatures: with them everything is compiled on import, once for each machine.
_IMAGE = "Array(uint8, 3, 'C', readonly=True)"
_TRIANGLE = "Tuple((int32[::1], int32[::1], int32[:, ::1]))"
_WEIGHTS = f"{_TRIANGLE}(int64, float32, float32, int64)"
_DOWN = f"void(Array(uint8, 2, 'C', readonly=True), {_TRIANGLE}, uint8[:, ::1])"
_TURN = f"void({_IMAGE}, int64, int64, uint8[:, ::1])"
_NARROW = f"void(uint8[:, ::1], int64, int64, {_TRIANGLE}, uint8[:, ::1])"
_ACROSS = f"void({_IMAGE}, {_TRIANGLE}, uint8[:, ::1])"
_WINDOWS = f"void({_IMAGE}, int64[::1], int64[:, ::1], int64, uint8[:, :, ::1])"
_LUMA = f"void({_IMAGE}, uint8[:, ::1])"
_ADD_UP = f"void({_IMAGE}, uint8[:, :, ::1])"


def compiled(signature: str) -> Callable[[Any], Any]:
    """Compile a function now, and cache the code if a folder for it can be written."""

    def compile_now(function: Any) -> Any:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache
            return numba.njit(signature, nogil=True)(function)

    return compile_now


@compiled(_WEIGHTS)
def triangle_weights(num_in, start, stop, num_out):  # type: ignore[no-untyped-def]
    """Weigh the inputs of each output: first input, number of inputs, weights.

    The outputs cover the inputs from `start` to `stop`, which are 32-bit floats as in Pillow; those
    at the ends also blend in what lies beyond.
    """
    scale = np.float64(stop - start) / num_out
    reach = max(scale, 1.0)
    starts = np.empty(num_out, np.int32)
    counts = np.empty(num_out, np.int32)
    weights = np.zeros((num_out, int(np.ceil(reach)) * 2 + 1), np.int32)
    shares = np.empty(weights.shape[1])
    for o in range(num_out):
        centre = start + (o + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        count = min(int(centre + reach + 0.5), num_in) - first
        total = 0.0
        for k in range(count):
            shares[k] = max(1.0 - abs((k + first - centre + 0.5) * (1.0 / reach)), 0.0)
            total += shares[k]
        for k in range(count):
            weights[o, k] = int(0.5 + shares[k] / total * (1 << _BITS))
        starts[o] = first
        counts[o] = count
    return starts, counts, weights


@compiled(_DOWN)
def down(rows, triangle, out):  # type: ignore[no-untyped-def]
    """Resize the first axis; the second holds whole rows of bytes."""
    starts, counts, weights = triangle
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


@compiled(_TURN)
def _turn(image, top, num_rows, block):  # type: ignore[no-untyped-def]
    """Lay a few rows of `(H, W, 3)` on their side, so that a column's bytes are neighbours."""
    for y in range(num_rows):
        for x in range(image.shape[1]):
            block[x, 3 * y] = image[top + y, x, 0]
            block[x, 3 * y + 1] = image[top + y, x, 1]
            block[x, 3 * y + 2] = image[top + y, x, 2]


@compiled(_NARROW)
def _narrow(block, left, num_rows, triangle, out):  # type: ignore[no-untyped-def]
    """Resize the rows of a turned block across, and put them upright again, `(rows, 3 W)`."""
    starts, counts, weights = triangle
    sums = np.empty(3 * _BLOCK, np.int32)
    turned = np.empty((len(starts), 3 * _BLOCK), np.uint8)
    for o in range(len(starts)):
        sums[:] = _HALF
        for k in range(counts[o]):
            weight = weights[o, k]
            x = left + starts[o] + k
            for j in range(3 * _BLOCK):
                sums[j] += np.int32(block[x, j]) * weight
        for j in range(3 * _BLOCK):
            turned[o, j] = min(sums[j] >> _BITS, 255)
    for y in range(num_rows):
        for o in range(len(starts)):
            out[y, 3 * o] = turned[o, 3 * y]
            out[y, 3 * o + 1] = turned[o, 3 * y + 1]
            out[y, 3 * o + 2] = turned[o, 3 * y + 2]


@compiled(_ACROSS)
def across(image, triangle, out):  # type: ignore[no-untyped-def]
    """Resize the second axis of `(H, W, 3)` to rows of bytes, `(H, 3 S)`."""
    block = np.zeros((image.shape[1], 3 * _BLOCK), np.uint8)
    for top in range(0, image.shape[0], _BLOCK):
        num_rows = min(_BLOCK, image.shape[0] - top)
        _turn(image, top, num_rows, block)
        _narrow(block, 0, num_rows, triangle, out[top : top + num_rows])


@compiled(_WINDOWS)
def windows(canvas, lefts, places, crop_px, out):  # type: ignore[no-untyped-def]
    """Resize windows of one image; each row is turned once, and resized across once for each left.

    A window's place is the number of its left edge in `lefts`, and its upper edge.
    """
    triangle = triangle_weights(crop_px, 0.0, crop_px, out.shape[1])
    block = np.zeros((canvas.shape[1], 3 * _BLOCK), np.uint8)
    narrow = np.empty((len(lefts), canvas.shape[0], 3 * out.shape[1]), np.uint8)
    for top in range(0, canvas.shape[0], _BLOCK):
        num_rows = min(_BLOCK, canvas.shape[0] - top)
        _turn(canvas, top, num_rows, block)
        for number in range(len(lefts)):
            rows = narrow[number, top : top + num_rows]
            for k in range(len(places)):
                if places[k, 0] == number and top - crop_px < places[k, 1] < top + num_rows:
                    _narrow(block, lefts[number], num_rows, triangle, rows)
                    break
    for k in range(len(places)):
        number, upper = places[k]
        down(narrow[number, upper : upper + crop_px], triangle, out[k])


@compiled(_LUMA)
def luma(image, out):  # type: ignore[no-untyped-def]
    """Weigh the colours of `(H, W, 3)` to gray, `(H, W)`."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            out[y, x] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


@compiled(_ADD_UP)
def add_up(deltas, out):  # type: ignore[no-untyped-def]
    """Turn the deltas of `codecs`, `(3, H, W)`, into pixels, `(H, W, 3)`."""
    width = deltas.shape[2]
    sums = np.zeros((3, width), np.uint8)
    for y in range(deltas.shape[1]):
        # Down a column all are neighbours, which makes vectors; across, each sum needs the last.
        for plane in range(3):
            for x in range(width):
                sums[plane, x] += deltas[plane, y, x]
        green, red, blue = np.uint8(0), np.uint8(0), np.uint8(0)
        for x in range(width):
            green += sums[0, x]
            red += sums[1, x]
            blue += sums[2, x]
            out[y, x, 0] = red + green
            out[y, x, 1] = green
            out[y, x, 2] = blue + green
