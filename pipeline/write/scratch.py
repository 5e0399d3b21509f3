"""Folders of this machine for what is on its way to or from an address, while a build runs.

A build has one, and so has each of its workers for each shard. A process that is killed leaves its
folder, but not its lock on it: the next one that uses the same parent removes it.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from pipeline.common.atomic_io import require_folder
from pipeline.common.file_lock import lock
from pipeline.stream.cache import default_folder

_PREFIX = "build-"


@contextlib.contextmanager
def open_scratch(parent: Path | None) -> Iterator[Path]:
    """Make a folder that is removed in the end.

    Args:
        parent: Folder to make it in; None takes one among the user's caches.

    Raises:
        ConfigError: If the parent cannot be written.
    """
    parent = (parent or default_folder().with_name("scratch")).absolute()
    require_folder(parent, "--scratch")
    with _cleared(parent):
        folder = Path(mkdtemp(prefix=_PREFIX, dir=parent))
        held = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            lock(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
        with contextlib.suppress(OSError), _cleared(parent):  # of killed workers
            pass


@contextlib.contextmanager
def _cleared(parent: Path) -> Iterator[None]:
    """Remove the folders of processes that have ended; no other process makes one meanwhile."""
    with _opened(parent) as inside:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is known
            lock(inside, stop=threading.Event())
            for folder in parent.glob(f"{_PREFIX}*"):
                _remove_left(folder)
        yield


def _remove_left(folder: Path) -> None:
    with contextlib.suppress(OSError), _opened(folder) as inside:
        if lock(inside):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
