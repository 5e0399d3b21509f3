"""Plain ustar headers with fixed metadata: equal samples give equal bytes."""

import tarfile
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Size = TypeVar("Size", int, NDArray[np.int64])

TAR_BLOCK = 512
TAR_END = bytes(2 * TAR_BLOCK)

# Where a ustar header holds what differs between members; tarfile makes the rest.
_NAME_BYTES = 100
_SIZE = slice(124, 135)
_CHECKSUM = slice(148, 154)
_TEMPLATE = tarfile.TarInfo("").tobuf(format=tarfile.USTAR_FORMAT)
_TEMPLATE_SUM = int(_TEMPLATE[_CHECKSUM], 8)


def tar_header(name: str, size: int) -> bytes:
    """Make a plain ustar header; every field except name and size is fixed.

    A member's data starts 512 bytes after the start of its header.

    Args:
        name: At most 100 bytes of ASCII; keys are short enough.
        size: Size of the member's data, bytes; less than 8 GiB.

    Raises:
        ValueError: If one does not fit.
    """
    changed = (name.encode("ascii").ljust(_NAME_BYTES, b"\0"), b"%011o" % size)
    # The checksum is the sum of the header's bytes; the template's has neither name nor size.
    checksum = _TEMPLATE_SUM + sum(changed[0]) + sum(changed[1]) - sum(b"0" * 11)
    header = bytearray(_TEMPLATE)
    header[:_NAME_BYTES], header[_SIZE], header[_CHECKSUM] = *changed, b"%06o" % checksum
    if len(header) != TAR_BLOCK:
        raise ValueError(f"{name!r} of {size} bytes does not fit a ustar header")
    return bytes(header)


def is_tar_header(data: bytes, name: str, size: int) -> bool:
    """Whether a block is the header that `tar_header` makes."""
    try:
        return data == tar_header(name, size)
    except ValueError:
        return False


def tar_padding(size: Size) -> Size:
    """Count the zeros that follow `size` bytes of data in a tar; for a number or an array."""
    return -size % TAR_BLOCK
