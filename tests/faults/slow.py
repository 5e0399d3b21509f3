"""Work for an engine's workers, which find it by its name."""

import time
from pathlib import Path

from pipeline.engines.in_worker import count_image


def divide(number: int) -> float:
    """Fail at 0."""
    return 1 / number


def count_slowly(seconds: float) -> float:
    """Count three images, in so many seconds."""
    for _ in range(3):
        time.sleep(seconds / 3)
        count_image()
    return seconds


def count_and_sign(folder: Path) -> str:
    """Count an image, leave the name of the node, and take two seconds more."""
    import ray

    count_image()
    (folder / ray.get_runtime_context().get_node_id()).touch()
    time.sleep(2)
    return "done"
