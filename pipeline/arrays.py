"""Arrays as members of a tar: `.npy`, uint8, C order, never pickled."""

import io
import re
import struct
from functools import cache

import numpy as np

from pipeline.errors import VerificationError
from pipeline.resample import Pixels

Member = tuple[bytes | memoryview, ...]
"""A member's bytes in parts, so that pixels go to the file without being copied on the way."""

# NumPy reads a header by Python's parser, which threads trip over: "SystemError: AST constructor
# recursion depth mismatch", https://github.com/python/cpython/issues/106905. It can go with 3.11.
_PLAIN = re.compile(
    rb"\x93NUMPY\x01\x00v\x00"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n"
)

NPY_START = 128
"""Bytes in front of the pixels of a `.npy`."""


def encode_array(array: Pixels) -> Member:
    """Write an array as `.npy`, C order, never pickled: its header, and its own memory."""
    return npy_header(array.shape), np.ascontiguousarray(array).reshape(-1).data


@cache
def npy_header(shape: tuple[int, ...]) -> bytes:
    """Make the one header that a uint8 array in C order has; numpy's versions differ in theirs.

    Source: NumPy's documentation of `numpy.lib.format`, version 1.0.
    """
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {tuple(map(int, shape))}, }}"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_START - 10)
    return start + fields.encode().ljust(NPY_START - 11) + b"\n"


def decode_array(data: bytes | memoryview, where: str) -> Pixels:
    """Read `.npy` bytes as a view on them.

    Args:
        data: The member's bytes.
        where: Shard and member, for the error.

    Raises:
        VerificationError: If these are not the bytes of one C-ordered uint8 array.
    """
    try:
        start = bytes(data[:256])
        plain = _PLAIN.match(start)
        if plain and plain.end() == NPY_START:
            sides = [int(side) for side in plain[1].split(b",") if side.strip()]
            return np.frombuffer(data, np.uint8, offset=NPY_START).reshape(sides)
        header = io.BytesIO(start)
        version = np.lib.format.read_magic(header)
        if version != (1, 0):
            raise ValueError(f".npy version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
        if fortran or dtype != np.uint8:
            raise ValueError(f"{dtype} array, fortran order {fortran}")
        return np.frombuffer(data, np.uint8, offset=header.tell()).reshape(shape)
    except (ValueError, EOFError) as error:
        raise VerificationError(
            f"an array member must be a C-ordered uint8 .npy; got {error} in {where}. "
            "Rebuild the shard."
        ) from error
