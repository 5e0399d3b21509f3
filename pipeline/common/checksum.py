"""Files that hold their own SHA-256, so that a flipped bit is found.

The digest is computed with zeros in its place.
"""

import hashlib
import re

NO_DIGEST = "0" * 64


def embed_sha256(data: bytes, name: str) -> bytes:
    """Write a file's digest into it.

    Args:
        data: The file, with `NO_DIGEST` as the value of a JSON field.
        name: The field; its first occurrence counts.
    """
    start, end = _field(name, NO_DIGEST.encode()).search(data).span(1)  # type: ignore[union-attr]
    return b"".join((data[:start], hashlib.sha256(data).hexdigest().encode(), data[end:]))


def verify_sha256(data: bytes, name: str, *, within: int) -> None:
    """Compare a file with its own digest; an older file without the field passes.

    Args:
        data: The file.
        name: The field of the digest.
        within: Bytes at the start of the file that contain the field.

    Raises:
        ValueError: If a byte has changed.
    """
    if data.find(name.encode(), 0, within) < 0:
        return
    found = _field(name, b"[0-9a-f]{64}").search(data, 0, within)
    if found is None:
        raise ValueError(f"no SHA-256 in {name}")
    start, end = found.span(1)
    digest = hashlib.sha256(data[:start] + NO_DIGEST.encode())
    digest.update(memoryview(data)[end:])
    if digest.hexdigest().encode() != found[1]:
        raise ValueError(f"a SHA-256 of {digest.hexdigest()}, not {found[1].decode()}")


def read_sha256(data: bytes, name: str) -> str:
    """Read the digest in a file; empty if there is none.

    Args:
        data: The file, or its start that contains the field.
        name: The field.
    """
    found = _field(name, b"[0-9a-f]{64}").search(data)
    return found[1].decode() if found else ""


def _field(name: str, value: bytes) -> re.Pattern[bytes]:
    return re.compile(rb'"%s": ?"(%s)"' % (name.encode(), value))
