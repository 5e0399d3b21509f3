"""What runs in a Ray worker: one task, which counts its images in an actor."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from pipeline.engines.in_worker import count_with, outcome

_COUNT_S = 0.5  # between two counts of a task that has lost no worker


class Place(NamedTuple):
    """Where a task runs, and how far it is."""

    node: str
    pid: int
    num_done: int


class Counts:
    """An actor that keeps how far each running task is, by its number and its try."""

    def __init__(self) -> None:
        """Begin without tasks."""
        self._places: dict[tuple[int, int], Place] = {}

    def put(self, number: int, attempt: int, place: Place) -> None:
        """Keep how far a task is."""
        self._places[number, attempt] = place

    def take(self) -> dict[tuple[int, int], Place]:
        """Give what was put since the last call."""
        places, self._places = self._places, {}
        return places


class _Counter:
    """Counts the images of one task, in its worker."""

    def __init__(self, counts: Any, number: int, attempt: int) -> None:
        context = ray.get_runtime_context()
        self._counts, self._number, self._attempt = counts, number, attempt
        self._place = Place(context.get_node_id(), os.getpid(), 0)
        self._told_s = time.monotonic()
        self._put()

    def count(self) -> None:
        """Count an image; after a lost worker, tell it before the next one is touched."""
        self._place = self._place._replace(num_done=self._place.num_done + 1)
        now_s = time.monotonic()
        if self._attempt:
            ray.get(self._put())
        elif now_s - self._told_s > _COUNT_S:
            self._told_s = now_s
            self._put()

    def _put(self) -> Any:
        return self._counts.put.remote(self._number, self._attempt, self._place)


_faults: dict[Any, str] = {}  # found by this process, once: its node may have joined just now


def work_on(
    work: Callable[[Any], Any],
    task: Any,
    find_fault: Callable[[], str],
    counts: Any,
    number: int,
    attempt: int,
) -> tuple[str, Any, Exception | None]:
    """Run one task, in a worker.

    Returns:
        What differs on this node, or else "", what the task resulted in, and the error that it
        ended in.
    """
    if find_fault not in _faults:
        _faults[find_fault] = find_fault()
    if _faults[find_fault]:
        return f"{_faults[find_fault]} on {ray.util.get_node_ip_address()}", None, None
    count_with(_Counter(counts, number, attempt).count)
    return "", *outcome(work, task)
