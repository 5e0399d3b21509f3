"""A folder of this machine for what is on its way to or from an address, while a build runs.

A build that is killed leaves its folder, but not its lock on it: the next build that uses the same
parent removes it.
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
    """Make a folder that is removed when the build ends.

    Args:
        parent: Folder to make it in; None takes one among the user's caches.

    Raises:
        ConfigError: If the parent cannot be written.
    """
    parent = (parent or default_folder().with_name("scratch")).absolute()
    require_folder(parent, "--scratch")
    with _opened(parent) as inside:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is known
            lock(inside, stop=threading.Event())  # no folder is made meanwhile
            _remove_left(parent)
        folder = Path(mkdtemp(prefix=_PREFIX, dir=parent))
        held = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            lock(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _remove_left(parent: Path) -> None:
    """Remove the folders of builds that have ended."""
    for folder in parent.glob(f"{_PREFIX}*"):
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
