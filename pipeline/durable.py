"""Files that exist whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def whole_file(path: Path, *, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when every byte is on the disk.

    Written aside, fsync, rename, fsync of the folder: also a power cut leaves no partial file.

    Args:
        path: Its name.
        num_bytes: What it takes, about; for errors.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with named_errors(path, aside=aside, num_bytes=num_bytes):
            with aside.open("wb") as file:  # closing writes, too
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before counts more
            aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it exists whole or not at all."""
    with whole_file(path, num_bytes=len(data)) as file:
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
def named_errors(
    path: Path, *, aside: Path | None = None, num_bytes: int | None = None
) -> Iterator[None]:
    """Name the file in errors of the system that do not, such as a full disk's.

    Args:
        path: The file.
        aside: Where it is written; whoever reads the error does not know it.
        num_bytes: What the file takes, about; told where it does not fit.
    """
    try:
        yield
    except OSError as error:
        is_ours = error.filename is None or (aside and os.fspath(error.filename) == str(aside))
        if error.errno is None or not is_ours:
            raise
        needed = error.errno in NO_ROOM and num_bytes is not None
        what = f"{error.strerror} (needs about {num_bytes:,} bytes)" if needed else error.strerror
        raise OSError(error.errno, what, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    with named_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
