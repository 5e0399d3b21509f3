"""What every engine's worker has in common: it counts images, and its errors are values."""

from collections.abc import Callable
from typing import Any

from pipeline.common.child_process import sendable

_count: Callable[[], None] | None = None  # in no worker


class StoppedError(Exception):
    """Raised in a worker when the build was interrupted."""


def count_image() -> None:
    """Count a finished image, in a worker.

    Raises:
        StoppedError: If the build was interrupted.
    """
    if _count:
        _count()


def count_with(count: Callable[[], None]) -> None:
    """Set what counts an image in this process."""
    global _count
    _count = count


def outcome(work: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None]:
    """Give what a task results in, or the error that it ends in."""
    try:
        return work(task), None
    except Exception as error:
        return None, sendable(error)
