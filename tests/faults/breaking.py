"""Kill a process, or let its disk fail, at the n-th step that changes the disk.

Forking is for processes without other threads.
"""

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")

Act = Callable[[str, Path], None]
"""Called before each step with its kind and the file; or raises, or never returns."""


class File:
    """A file that takes two steps for a write, one before each half of it, and one for each other
    call that may write."""

    def __init__(self, file: BinaryIO, path: Path, act: Act) -> None:
        self._file, self._path, self._act = file, path, act

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        for part in (view[:half], view[half:]):
            self._act("write", self._path)
            self._file.write(part)
            self._file.flush()
        return len(view)

    def flush(self) -> None:
        self._act("flush", self._path)
        self._file.flush()

    def close(self) -> None:
        try:
            self._act("close", self._path)
        finally:
            self._file.close()

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def stepped(act: Act) -> Iterator[None]:
    """Call `act` before everything that changes a disk."""
    real = {name: getattr(os, name) for name in STEPS}
    real_open = Path.open

    def before(kind: str) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            if kind == "unlink" and not (options or os.path.lexists(target)):
                return real[kind](target)  # there is nothing to be changed
            act(kind, Path(os.readlink(f"/proc/self/fd/{target}") if kind == "fsync" else target))
            return real[kind](target, *args, **options)

        return call

    def open_file(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" not in mode:
            return real_open(path, mode, *args, **options)
        act("open", path)
        return File(real_open(path, mode, *args, **options), path, act)

    with contextlib.ExitStack() as stack:
        for name in STEPS:
            stack.enter_context(mock.patch.object(os, name, before(name)))
        stack.enter_context(mock.patch.object(Path, "open", open_file))
        yield


def kill_at(number: int) -> Act:
    steps = iter(range(1, number + 1))

    def act(kind: str, path: Path) -> None:
        # Flushing and closing changes nothing: `File` leaves nothing to be written.
        if kind not in ("flush", "close") and next(steps) == number:
            tell(kind=kind, path=str(path))
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def tell(**found: str) -> None:
    """Print a line past click, which keeps what its commands print."""
    os.write(1, json.dumps(found).encode() + b"\n")


def forked(do: Callable[[], None]) -> int:
    """Run in a child; return how it ended."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        do()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
