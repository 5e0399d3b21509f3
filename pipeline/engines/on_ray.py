"""Ray: a task a shard, on this machine or on the nodes of a cluster.

A task returns its error as a value. One that loses its worker or its node is run again as the
caller says, as in `local`; Ray itself retries nothing.
"""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    TaskCancelledError,
    WorkerCrashedError,
)

from pipeline.common.errors import SrpError, few
from pipeline.common.progress import SILENT, Progress
from pipeline.engines import cluster
from pipeline.engines.local import Retry
from pipeline.engines.ray_task import Counts, Place, work_on

Task = TypeVar("Task")
Result = TypeVar("Result")

LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError, TaskCancelledError)
AHEAD = 2  # tasks given to Ray for each that it can run at once
SLOW = 3  # times the median, which a straggler takes
_POLL_S = 0.2
_GRACE_S = 10  # for tasks to stop, before they are killed
_LONGEST_WAIT_S = 2  # between two polls; more means that the build itself was suspended


def run_tasks(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    shards: Sequence[tuple[str, int]],
    address: str | None,
    workers: int,
    timeout_s: float,
    needs_gpu: bool,
    find_fault: Callable[[], str],
    retry: Retry[Task],
    progress: Progress = SILENT,
) -> Iterator[Result]:
    """Run tasks on Ray, and yield results as they come.

    Args:
        work: A module-level function that calls `count_image` for each image.
        tasks: One per shard.
        shards: Name and number of images of each task's shard.
        address: `auto` or HOST:PORT of a cluster; None starts one on this machine.
        workers: CPUs of a cluster that is started here; tasks that share a GPU.
        timeout_s: Seconds without a finished image after which a worker counts as hung.
        needs_gpu: Whether each task needs its share of a GPU.
        find_fault: Says what differs on a node; hashable, and sent to each.
        retry: Gives the task to run after the worker of one died or hung.
        progress: Reports finished images and stragglers, a few times a second.

    Raises:
        ConfigError: If the cluster cannot be reached, or a node would build other shards.
        SrpError: If a task cannot be run.
    """
    if not tasks:
        return
    with cluster.connected(address, workers=workers):
        share = cluster.gpu_share(workers) if needs_gpu else 0
        cluster.require_same_everywhere(find_fault)
        run = _Run(
            work,
            tasks,
            shards,
            share=share,
            timeout_s=timeout_s,
            find_fault=find_fault,
            retry=retry,
        )
        num_images = sum(num for _, num in shards)
        try:
            while run.has_work():
                run.submit()
                yield from run.poll()
                progress.update("building shards", run.num_done(), num_images, run.slow())
        finally:
            run.stop()


@dataclass(kw_only=True)
class _Try:
    """One try of a task that was given to Ray.

    Attributes:
        number: The task's position.
        attempt: How many workers the task has lost before.
        place: Where it runs and how far it is; None until it has begun.
        begun_s: When that was first seen.
        idle_s: Seconds since the number of its finished images grew.
        how: How its worker ended, if it did.
    """

    number: int
    attempt: int
    place: Place | None = None
    begun_s: float = 0
    idle_s: float = 0
    how: str = "died"


class _Run:
    """The tasks of one build."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        tasks: Sequence[Any],
        shards: Sequence[tuple[str, int]],
        *,
        share: float,
        timeout_s: float,
        find_fault: Callable[[], str],
        retry: Retry[Any],
    ) -> None:
        self._task = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(work_on)
        here = ray.get_runtime_context().get_node_id()
        self._counts = cluster.actor_on(here, Counts)
        self._work, self._find_fault = work, find_fault
        self._tasks, self._shards = dict(enumerate(tasks)), shards
        self._waiting = deque(self._tasks)
        self._attempts = dict.fromkeys(self._tasks, 0)
        self._tries: dict[Any, _Try] = {}  # by Ray's reference
        self._finished: set[int] = set()
        self._took_s: list[float] = []  # of each finished task
        self._share, self._timeout_s, self._retry = share, timeout_s, retry
        self._polled_s = time.monotonic()

    def has_work(self) -> bool:
        """Whether a task is waiting or given to Ray."""
        return bool(self._waiting or self._tries)

    def submit(self) -> None:
        """Give Ray the next tasks; no more than it can begin soon, each with its images' names."""
        room = AHEAD * cluster.num_slots(self._share) - len(self._tries)
        for _ in range(min(room, len(self._waiting))):
            number = self._waiting.popleft()
            attempt = self._attempts[number]
            reference = self._task.remote(
                self._work, self._tasks[number], self._find_fault, self._counts, number, attempt
            )
            self._tries[reference] = _Try(number=number, attempt=attempt)

    def poll(self) -> Iterator[Any]:
        """Wait briefly and yield results; kill hanging workers."""
        ready, _ = ray.wait(list(self._tries), timeout=_POLL_S)
        now_s = time.monotonic()
        waited_s = min(now_s - self._polled_s, _LONGEST_WAIT_S)
        self._polled_s = now_s
        self._read_counts(waited_s)
        for reference in ready:
            yield from self._receive(reference)
        for each in self._tries.values():
            if each.place and each.idle_s > self._timeout_s and each.how != "hung":
                each.how = "hung"
                cluster.on_node(each.place.node, cluster.kill, each.place.pid)

    def _read_counts(self, waited_s: float) -> None:
        """Read how far each task is."""
        places: dict[tuple[int, int], Place] = {}
        with contextlib.suppress(RayError):  # it was killed, and begins anew
            places = ray.get(self._counts.take.remote())
        for each in self._tries.values():
            place = places.get((each.number, each.attempt))
            if each.place is None and place:
                each.begun_s = self._polled_s
            has_grown = place and (each.place is None or place.num_done > each.place.num_done)
            each.idle_s = 0 if has_grown else each.idle_s + waited_s
            each.place = place or each.place

    def _receive(self, reference: Any) -> Iterator[Any]:
        each = self._tries.pop(reference)
        try:
            fault, result, error = ray.get(reference)
        except LOST:
            self._lose(each)
            return
        except RayError as cause:
            raise SrpError(
                f"a task must run on every Ray node; got {cluster.first_cause(cause)}. Install the "
                "same srp there, and run the same command again; finished shards are kept."
            ) from cause
        if fault:
            raise cluster.differs(fault)
        if error:
            raise error
        self._finished.add(each.number)
        if each.place:
            self._took_s.append(self._polled_s - each.begun_s)
        yield result

    def _lose(self, each: _Try) -> None:
        """Put a task that lost its worker in front of the waiting ones."""
        num_done = each.place.num_done if each.place else 0
        self._tasks[each.number] = self._retry(self._tasks[each.number], num_done, each.how)
        self._attempts[each.number] += 1
        self._waiting.appendleft(each.number)

    def num_done(self) -> int:
        """Count the images that are finished."""
        running = (each.place.num_done for each in self._tries.values() if each.place)
        return sum(self._shards[number][1] for number in self._finished) + sum(running)

    def slow(self) -> str:
        """Name the shards that take much longer than those that are finished."""
        if not self._took_s:
            return ""
        limit_s = SLOW * statistics.median(self._took_s)
        names = [
            self._shards[each.number][0]
            for each in self._tries.values()
            if each.place and self._polled_s - each.begun_s > limit_s
        ]
        return f"slow: {few(names)}" if names else ""

    def stop(self) -> None:
        """Ask all tasks to stop, then kill those that do not."""
        left = list(self._tries)
        with contextlib.suppress(RayError):
            for reference in left:
                ray.cancel(reference)
            if left:
                _, left = ray.wait(left, num_returns=len(left), timeout=_GRACE_S)
            for reference in left:
                ray.cancel(reference, force=True)
            ray.kill(self._counts)
