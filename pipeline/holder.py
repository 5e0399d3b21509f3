"""One build in a folder at a time, which says who it is."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from pipeline.durable import write_file
from pipeline.errors import ConfigError


class Holder(msgspec.Struct, frozen=True):
    """The process that builds in a folder."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} has been writing since {self.since}"


@contextlib.contextmanager
def held(out: Path, note: Path) -> Iterator[None]:
    """Keep a second build out.

    The lock is the system's and ends with the process, however it ends. Where the file system has
    none, the note stands in for it.

    Args:
        out: The folder.
        note: File that says who holds it; to be deleted by whoever held it.

    Raises:
        ConfigError: If another build holds it; names it.
    """
    me = Holder(os.getpid(), socket.gethostname(), f"{datetime.now().astimezone():%F %T %Z}")
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"OUT must have one build at a time; got {out}, which "
                f"{_read(note) or 'another is writing'}. "
                "Wait for it to end, or name another folder."
            ) from None
        except OSError:  # a file system without locks
            _take_note(out, note, me)
        else:
            write_file(note, msgspec.json.encode(me))
        yield
    finally:
        os.close(descriptor)


def _take_note(out: Path, note: Path, me: Holder) -> None:
    """Leave a note where there is none, or one of a process of this machine that is gone."""
    holder = _read(note)
    if holder and holder.host == me.host and not _is_alive(holder.pid):
        note.unlink(missing_ok=True)
    try:
        with note.open("xb") as file:
            file.write(msgspec.json.encode(me))
    except FileExistsError:
        raise ConfigError(
            f"OUT must have one build at a time; got {out}, which "
            f"{holder or 'another is writing'}, on a file system without locks. "
            f"Wait for it to end, or delete {note} if it has been killed."
        ) from None


def _read(note: Path) -> Holder | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=Holder)
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
