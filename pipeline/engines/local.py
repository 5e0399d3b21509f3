"""Worker processes, each of which runs whole tasks: the shards of a build.

A worker that dies or hangs does not disturb the others: each has its own pipe, and they share no
lock. The caller decides what becomes of its task.
"""

import contextlib
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from ctypes import Array, c_int64
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

from pipeline.common.child_process import (
    end_with_parent,
    held_interrupts,
    without_the_current_folder,
)
from pipeline.common.errors import SrpError
from pipeline.common.progress import SILENT, Progress
from pipeline.engines.in_worker import StoppedError, count_with, outcome

Task = TypeVar("Task")
Result = TypeVar("Result")
Retry = Callable[[Task, int, str], Task]
"""Takes a task, the number of its finished images, and how its worker ended: "died" or "hung".
Returns the task to run instead, or raises."""

_POLL_S = 0.1
_START_S = 120  # within which a worker must be ready for its first task
_GRACE_S = 5  # for a worker to finish its image and stop
_LONGEST_WAIT_S = 1  # between two polls; more means that the build itself was suspended
_STOP = 0  # index of the counter that tells workers to stop; each other one is a task's

# Without a lock: a worker killed while holding one would block all others forever.
_counters: "Array[c_int64]"
_own = 1


def _count() -> None:
    if _counters[_STOP]:
        raise StoppedError
    _counters[_own] += 1


def _serve(work: Callable[[Any], Any], counters: "Array[c_int64]", pipe: Connection) -> None:
    """Run the tasks that come through the pipe, in a worker, until the pipe is closed."""
    global _counters, _own
    _counters = counters
    count_with(_count)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server may have been started elsewhere
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send(None)  # ready
        while True:
            _own, task = pipe.recv()
            pipe.send(outcome(work, task))


@dataclass(kw_only=True)
class _Worker:
    """One process and its task.

    Attributes:
        process: Runs `_serve`.
        pipe: Connection to it.
        number: Number of its task; None until it is ready for one.
        num_done: Finished images of the task at the last poll.
        idle_s: Seconds since that number grew.
    """

    process: ForkServerProcess
    pipe: Connection
    number: int | None = None
    num_done: int = 0
    idle_s: float = 0


def start_server(modules: Sequence[str]) -> None:
    """Start the process that workers are forked from; it imports what they need, once.

    Call it early: it imports while the build lists the source. Later builds of this process use
    the same server.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # first, since it would let interrupts through again
    with held_interrupts(), without_the_current_folder():
        forkserver.ensure_running()


def run_tasks(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    timeout_s: float,
    retry: Retry[Task],
    num_images: int,
    progress: Progress = SILENT,
) -> Iterator[Result]:
    """Run tasks in worker processes, and yield results as they come.

    Args:
        work: A module-level function that calls `count_image` for each image.
        tasks: One per shard.
        workers: Number of processes.
        timeout_s: Seconds without a finished image after which a worker counts as hung.
        retry: Gives the task to run after the worker of one died or hung.
        num_images: Images of all tasks.
        progress: Reports finished images, about ten times a second.

    Raises:
        SrpError: If workers cannot be started.
    """
    pool = _Pool(work, tasks, timeout_s=timeout_s, retry=retry)
    try:
        while pool.has_work():
            pool.start_workers(workers)
            yield from pool.poll()
            progress.update("building shards", sum(pool.counters[1:]), num_images)
    finally:
        pool.stop()


class _Pool:
    """The workers of one build, and their tasks, which are numbered from 1."""

    def __init__(
        self,
        work: Callable[[Any], Any],
        tasks: Sequence[Any],
        *,
        timeout_s: float,
        retry: Retry[Any],
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self.counters = self._context.RawArray(c_int64, 1 + len(tasks))
        self._work = work
        self._tasks = dict(enumerate(tasks, start=1))
        self._waiting = deque(self._tasks)
        self._timeout_s = timeout_s
        self._retry = retry
        self._busy: list[_Worker] = []
        self._retired: list[_Worker] = []
        self._polled_s = time.monotonic()

    def has_work(self) -> bool:
        """Whether a task is waiting or running."""
        return bool(self._waiting or self._busy)

    def start_workers(self, limit: int) -> None:
        """Start workers for the waiting tasks, up to a limit."""
        num_starting = sum(worker.number is None for worker in self._busy)
        for _ in range(min(limit - len(self._busy), len(self._waiting) - num_starting)):
            pipe, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(self._work, self.counters, theirs), daemon=True
            )
            try:
                with held_interrupts():
                    process.start()
            except (EOFError, ConnectionError) as error:
                raise SrpError(
                    "cannot start workers: their server ended while importing numba and Pillow. "
                    "See the lines above, and try: python -c 'import pipeline.write.worker'"
                ) from error
            theirs.close()  # so that the pipe closes when the worker ends
            self._busy.append(_Worker(process=process, pipe=pipe))

    def poll(self) -> Iterator[Any]:
        """Wait briefly and yield results; send the next tasks, and kill hanging workers."""
        ready = wait([worker.pipe for worker in self._busy], timeout=_POLL_S)
        now_s = time.monotonic()
        waited_s = min(now_s - self._polled_s, _LONGEST_WAIT_S)
        self._polled_s = now_s
        for worker in tuple(self._busy):
            if worker.pipe in ready:
                yield from self._receive(worker)
            elif self._hangs(worker, waited_s):
                self._lose(worker, "hung")

    def _receive(self, worker: _Worker) -> Iterator[Any]:
        try:
            received = worker.pipe.recv()
        except (EOFError, OSError):
            self._lose(worker, "died")
            return
        if received:
            result, error = received
            if error:
                raise error
            yield result
        try:
            self._send_task(worker)
        except OSError:
            self._lose(worker, "died")

    def _send_task(self, worker: _Worker) -> None:
        """Send the next task; without one, retire the worker."""
        if not self._waiting:
            self._busy.remove(worker)
            self._retired.append(worker)
            worker.pipe.close()
            return
        worker.number = self._waiting.popleft()
        worker.num_done, worker.idle_s = 0, 0
        self.counters[worker.number] = 0
        worker.pipe.send((worker.number, self._tasks[worker.number]))

    def _hangs(self, worker: _Worker, waited_s: float) -> bool:
        num_done = self.counters[worker.number] if worker.number else 0
        worker.idle_s = worker.idle_s + waited_s if num_done == worker.num_done else 0
        worker.num_done = num_done
        return worker.idle_s > (self._timeout_s if worker.number else _START_S)

    def _lose(self, worker: _Worker, how: str) -> None:
        """Kill a worker, and put its task in front of the waiting ones."""
        worker.process.kill()
        worker.process.join(_GRACE_S)
        worker.pipe.close()
        self._busy.remove(worker)
        if worker.number is None:
            raise SrpError(
                f"a worker {how} before its first shard (out of memory?). Run the same command "
                "again with fewer --workers; finished shards are kept."
            )
        num_done = self.counters[worker.number]
        task = self._retry(self._tasks[worker.number], num_done, how)
        self._tasks[worker.number] = task
        self._waiting.appendleft(worker.number)

    def stop(self) -> None:
        """Ask all workers to stop, then kill those that do not."""
        self.counters[_STOP] = 1
        workers = self._busy + self._retired
        for worker in workers:
            worker.pipe.close()
        end_s = time.monotonic() + _GRACE_S
        try:
            for worker in workers:
                worker.process.join(max(0, end_s - time.monotonic()))
        finally:  # also when interrupted once more
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.join(_GRACE_S)
