"""Locks between processes. A lock is the system's (flock): it ends with its process."""

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import ConfigError

_POLL_S = 0.1


class LockOwner(msgspec.Struct, frozen=True):
    """The process that has a lock."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} has been writing since {self.since}"


def lock(
    file: BinaryIO | int, *, shared: bool = False, stop: threading.Event | None = None
) -> bool:
    """Lock an open file.

    Args:
        file: The file or its descriptor; closing it ends the lock.
        shared: Whether others may have a shared lock too.
        stop: Wait for other processes until this is set; None does not wait.

    Returns:
        Whether the lock is ours; False only if `stop` is None.

    Raises:
        CancelledError: If `stop` was set.
        OSError: If the file system has no locks.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        try:
            fcntl.flock(file, how)
            return True
        except BlockingIOError:
            if stop is None:
                return False
            if stop.wait(_POLL_S):
                raise CancelledError from None


def unlock(file: BinaryIO) -> None:
    """End a lock now, even if a child process has a copy of the descriptor."""
    with contextlib.suppress(OSError):  # the file system has no locks
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def writer_lock(path: Path, note: Path, *, rule: str, fix: str) -> Iterator[None]:
    """Refuse a second writer of a folder or a file, and say who the first is.

    On a file system without locks, the note alone is the lock.

    Args:
        path: The folder or file; it exists.
        note: File that names the owner while the lock lasts.
        rule: Rule of the error if another process has the lock.
        fix: What to do then.

    Raises:
        ConfigError: If another process has the lock.
    """
    me = LockOwner(os.getpid(), socket.gethostname(), f"{datetime.now().astimezone():%F %T %Z}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            is_ours = lock(descriptor) and _is_still_at(path, descriptor)
        except OSError:
            _take_note(path, note, me, rule)
        else:
            if not is_ours:
                owner = _read(note) or "another is writing"
                raise ConfigError(f"{rule}; got {path}, which {owner}. {fix}")
            write_file(note, msgspec.json.encode(me))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # an error before it matters more
                note.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def shared_lock(path: Path, note: Path, *, rule: str, fix: str) -> Iterator[None]:
    """Write a folder beside others that share it, unless a `writer_lock` has it alone.

    On a file system without locks, only the note of that writer is looked at.

    Args:
        path: The folder; it exists.
        note: File that names the owner of a `writer_lock`.
        rule: Rule of the error if there is one.
        fix: What to do then.

    Raises:
        ConfigError: If another process has the folder alone.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            is_ours = lock(descriptor, shared=True)
        except OSError:
            is_ours = _read(note) is None
        if not is_ours:
            owner = _read(note) or "another is writing"
            raise ConfigError(f"{rule}; got {path}, which {owner}. {fix}")
        yield
    finally:
        os.close(descriptor)


def _is_still_at(path: Path, descriptor: int) -> bool:
    """Whether the path was neither renamed nor removed before it was locked."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _take_note(path: Path, note: Path, me: LockOwner, rule: str) -> None:
    """Write the note, unless one is there whose process may be alive."""
    owner = _read(note)
    if owner and owner.host == me.host and not _is_alive(owner.pid):
        note.unlink(missing_ok=True)
    try:
        with note.open("xb") as file:
            file.write(msgspec.json.encode(me))
    except FileExistsError:
        raise ConfigError(
            f"{rule}; got {path}, which {owner or 'another is writing'}, on a file system "
            f"without locks. Wait for it to end, or delete {note} if it has been killed."
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
    except PermissionError:  # a process of another user
        return True
    return True
