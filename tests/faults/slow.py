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


def meet_and_count(folder: Path) -> str:
    """Leave the name of the node, wait until another has left its own, and take four seconds."""
    import ray

    count_image()
    (folder / ray.get_runtime_context().get_node_id()).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.1)
    time.sleep(4)
    return "done"
