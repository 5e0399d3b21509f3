"""A progress reporter that keeps every call, and may act on it."""

from collections.abc import Callable

from pipeline.common.progress import Progress


class Reported(Progress):
    def __init__(self, then: Callable[[int], object] = lambda _done: None) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self._then = then

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        self.calls.append((stage, done, total))
        self._then(done)
