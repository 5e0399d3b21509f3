"""Arrays as members of a tar: `.npy`, uint8, C order, never pickled."""

import re
import struct
from functools import cache

import numpy as np

from pipeline.common.errors import VerificationError
from pipeline.pixels import Pixels

Member = tuple[bytes | memoryview, ...]
"""A member's bytes in parts, so that pixels are written without a copy."""

# The only header that is written and read. NumPy reads headers with Python's parser, which raises
# errors of any type on hostile ones, and which fails in threads of 3.11: "SystemError: AST
# constructor recursion depth mismatch", https://github.com/python/cpython/issues/106905.
_PLAIN = re.compile(
    rb"\x93NUMPY\x01\x00v\x00"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n"
)

NPY_START = 128
"""Bytes of a `.npy` before its pixels."""


def encode_array(array: Pixels) -> Member:
    """Write an array as `.npy`, C order: its header, and its own memory."""
    return npy_header(array.shape), np.ascontiguousarray(array).reshape(-1).data


@cache
def npy_header(shape: tuple[int, ...]) -> bytes:
    """Make the header of a uint8 array in C order; NumPy's own differs between versions.

    Source: NumPy's documentation of `numpy.lib.format`, version 1.0.
    """
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {tuple(map(int, shape))}, }}"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_START - 10)
    return start + fields.encode().ljust(NPY_START - 11) + b"\n"


def decode_array(data: bytes | memoryview, where: str) -> Pixels:
    """View the array of a `.npy`.

    Args:
        data: The member's bytes.
        where: Shard and member, for the error.

    Raises:
        VerificationError: If the data is not one C-ordered uint8 array.
    """
    try:
        start = bytes(data[:256])
        plain = _PLAIN.match(start)
        if not plain or plain.end() != NPY_START:
            raise ValueError(f"the header {start[:NPY_START]!r}")
        sides = [int(side) for side in plain[1].split(b",") if side.strip()]
        return np.frombuffer(data, np.uint8, offset=NPY_START).reshape(sides)
    except ValueError as error:
        raise VerificationError(
            f"an array member must be a C-ordered uint8 .npy; got {error} in {where}. "
            "Rebuild the shard."
        ) from error
