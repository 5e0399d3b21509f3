"""Files that exist whole or not at all, in places that can be written.

An output that cannot be written is the user's mistake where that is found before the work, and
names the option; what fails later is the disk's.
"""

import contextlib
import errno
import os
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
    """Blame an option for a place that cannot be written; for what is tried before the work.

    Args:
        path: What was given.
        option: As it is typed.
        kind: What it must be, a `folder` or a `file`.

    Raises:
        ConfigError: If it is no such thing, or may not be written.
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
    """Make a folder for an output, and try whether it can be written.

    Raises:
        ConfigError: If it cannot; names the option.
    """
    with named_output(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def require_file(path: Path, option: str) -> None:
    """Try whether an output can be written in its folder, which must be there.

    Raises:
        ConfigError: If it cannot; names the option.
    """
    with named_output(path, option, kind="file"):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.exists()  # or its name is too long, which raises
        TemporaryFile(dir=path.parent).close()


@contextlib.contextmanager
def atomic_write(path: Path, *, num_bytes: int | None = None) -> Iterator[BinaryIO]:
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
    with atomic_write(path, num_bytes=len(data)) as file:
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
