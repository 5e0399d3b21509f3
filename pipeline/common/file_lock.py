"""One process at a time writes in a folder, and says who it is."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import ConfigError


class LockOwner(msgspec.Struct, frozen=True):
    """The process that writes in a folder."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} has been writing since {self.since}"


@contextlib.contextmanager
def folder_lock(folder: Path, note: Path, *, rule: str, fix: str) -> Iterator[None]:
    """Keep a second writer out.

    The lock is the system's and ends with the process, however it ends. Where the file system has
    none, the note stands in for it.

    Args:
        folder: The folder.
        note: File that says who holds it; to be deleted by whoever held it.
        rule: Of the error where another process holds it.
        fix: What to do then.

    Raises:
        ConfigError: If another process holds it; names it.
    """
    me = LockOwner(os.getpid(), socket.gethostname(), f"{datetime.now().astimezone():%F %T %Z}")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{rule}; got {folder}, which {_read(note) or 'another is writing'}. {fix}"
            ) from None
        except OSError:  # a file system without locks
            _take_note(folder, note, me, rule)
        else:
            write_file(note, msgspec.json.encode(me))
        yield
    finally:
        os.close(descriptor)


def _take_note(folder: Path, note: Path, me: LockOwner, rule: str) -> None:
    """Leave a note where there is none, or one of a process of this machine that is gone."""
    holder = _read(note)
    if holder and holder.host == me.host and not _is_alive(holder.pid):
        note.unlink(missing_ok=True)
    try:
        with note.open("xb") as file:
            file.write(msgspec.json.encode(me))
    except FileExistsError:
        raise ConfigError(
            f"{rule}; got {folder}, which {holder or 'another is writing'}, on a file system "
            "without locks. "
            f"Wait for it to end, or delete {note} if it has been killed."
        ) from None


def _read(note: Path) -> LockOwner | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=LockOwner)
    except (OSError, msgspec.MsgspecError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
