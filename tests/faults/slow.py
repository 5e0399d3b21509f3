"""Work for an engine's workers, which find it by its name."""

import time

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
