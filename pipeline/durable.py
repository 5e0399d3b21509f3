"""Files that exist whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when every byte is on the disk.

    Written aside, fsync, rename, fsync of the folder: also a power cut leaves no partial file.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with named_errors(path), aside.open("wb") as file:  # closing writes, too
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it exists whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in a folder that is itself still aside; its bytes are on the disk afterwards."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def remove_partials(folder: Path, *, of: str = "*") -> None:
    """Remove what killed writers left aside.

    Args:
        folder: Where they wrote.
        of: Name of the file that nobody writes now; all of them if it is not given.
    """
    for partial in folder.glob(f".{of}.*.partial"):
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that do not, such as a full disk's."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
