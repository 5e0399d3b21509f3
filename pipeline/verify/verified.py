"""What an earlier verification found whole, so that the next one reads what has changed since.

A file that was not written to is taken to hold the bytes that it held: a disk that rots is found
by reading all.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.common.atomic_io import write_file
from pipeline.format.index import ShardEntry

FILE_NAME = ".verified.json"


class Stamp(NamedTuple):
    """A shard's file as it was when it was found whole; times are the system's, nanoseconds."""

    sha256: str
    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int


def stamp(folder: Path, shard: ShardEntry) -> Stamp | None:
    """Look at a shard's file without reading it; None where it is missing."""
    try:
        found = (folder / shard.name).stat()
    except OSError:
        return None
    return Stamp(shard.sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def load_stamps(folder: Path) -> dict[str, Stamp]:
    """Read the shards that were found whole; none where that is not known."""
    try:
        return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=dict[str, Stamp])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def save_stamps(folder: Path, stamps: Iterable[tuple[str, Stamp]]) -> None:
    """Keep what was found, where the folder lets it be written."""
    try:
        write_file(folder / FILE_NAME, msgspec.json.encode(dict(stamps)))
    except OSError:
        return  # a folder that cannot be written to is read as a whole each time
