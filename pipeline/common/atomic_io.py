"""Files that exist whole or not at all, in places that can be written.

Before the work starts, an output that cannot be written is an error of the option that names it.
Later, it is an error of the system.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from pipeline.common.errors import ConfigError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
)  # fmt: skip


@contextlib.contextmanager
def named_output(path: Path, option: str, *, kind: str = "folder") -> Iterator[None]:
    """Turn an error of the system into one of the option that named the output.

    Args:
        path: The output.
        option: The option, as typed.
        kind: `folder` or `file`.

    Raises:
        ConfigError: If the output is of another kind, or cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise ConfigError(
            f"{option} must be a {kind} that can be written; got {path}: {error.strerror}. "
            f"Name another {kind}."
        ) from error


def require_folder(folder: Path, option: str) -> None:
    """Make a folder, and check that it can be written.

    Raises:
        ConfigError: If it cannot; names the option.
    """
    with named_output(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def require_file(path: Path, option: str) -> None:
    """Check that a file can be written in its folder, which exists.

    Raises:
        ConfigError: If it cannot; names the option.
    """
    with named_output(path, option, kind="file"):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.exists()  # raises if the name is too long
        TemporaryFile(dir=path.parent).close()


@contextlib.contextmanager
def atomic_write(path: Path, *, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when every byte is on the disk.

    It is written aside, synced and renamed, and its folder is synced: a power cut leaves no partial
    file, and takes none away.

    Args:
        path: The file.
        num_bytes: Its approximate size, for errors.
    """
    with whole_write(path, num_bytes=num_bytes) as file:
        yield file
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_write(path: Path, *, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Open a file as `atomic_write` does, without waiting for its folder.

    After a power cut the file is whole or absent, so it is for files that are made again if they
    are absent, and for many files whose folder is synced once.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")  # on any machine
    try:
        with named_errors(path, aside=aside, num_bytes=num_bytes):
            with aside.open("wb") as file:  # closing writes, too
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):  # an earlier error matters more
            aside.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that exists whole or not at all."""
    with atomic_write(path, num_bytes=len(data)) as file:
        file.write(data)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in a folder that is itself renamed later, and sync it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def remove_partials(folder: Path) -> None:
    """Remove the partial files of killed writers from a folder that no process writes now."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def named_errors(
    path: Path, *, aside: Path | None = None, num_bytes: int | None = None
) -> Iterator[None]:
    """Name the file in errors of the system that name none, for example of a full disk.

    Args:
        path: The file.
        aside: Its temporary name, which an error must not show.
        num_bytes: Its approximate size, shown if it does not fit.
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
