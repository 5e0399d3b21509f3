"""Where shards are built: on this machine, one process per worker, each owning whole shards.

A worker that dies or hangs costs the others nothing: each has a pipe of its own, and they share no
lock. What becomes of its shard is for the caller to say.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from ctypes import Array, c_int64
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

from pipeline.common.errors import SrpError
from pipeline.common.progress import SILENT, Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
Retry = Callable[[Task, int, str], Task]
"""Called with a task, how many of its images were through, and how its worker ended: "died" or
"hung". Returns the task to run in its place, or raises."""

_POLL_S = 0.1
_START_S = 120  # in which a worker must be ready for its first task
_GRACE_S = 5  # for what ends by itself: an image or two
_LONGEST_WAIT_S = 1  # more between two looks, and it was the build that was stopped
_STOP = 0  # the counter that tells workers to stop; the others belong to one task each

# No lock: a worker that is killed while it holds one would make all others wait for ever.
_counters: "Array[c_int64]"
_own = 1


class StoppedError(Exception):
    """Raised in a worker when the build was interrupted."""


def count_image() -> None:
    """Tell the build, from a worker, that one more image is through.

    Raises:
        StoppedError: If the build was interrupted meanwhile.
    """
    if _counters[_STOP]:
        raise StoppedError
    _counters[_own] += 1


def _end_with_parent() -> None:
    """End this worker when the build was killed: nobody would ever send it more work."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)


def _serve(work: Callable[[Any], Any], counters: "Array[c_int64]", pipe: Connection) -> None:
    """Work, in a process of its own, on what comes through the pipe until it is closed."""
    global _counters, _own
    _counters = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server may have been started elsewhere
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send(None)  # ready
        while True:
            _own, task = pipe.recv()
            pipe.send(_outcome(work, task))


def _outcome(work: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None]:
    try:
        return work(task), None
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, made on this line
        except Exception:
            return None, RuntimeError("\n".join(error.__notes__))
        return None, error


@dataclass(kw_only=True)
class _Worker:
    """One process and what it is at.

    Attributes:
        process: Runs `_serve`.
        pipe: To and from it.
        number: Of its task; None until it is ready for one.
        num_done: Images of the task that were through when we last looked.
        idle_s: Since when there were no more.
    """

    process: ForkServerProcess
    pipe: Connection
    number: int | None = None
    num_done: int = 0
    idle_s: float = 0


def start_server(modules: Sequence[str]) -> None:
    """Start the process that workers are forked from; it loads what all of them need, once.

    Call it early: it does so while the build lists the source. Later builds of this process use
    the same server.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # first, since it would let interrupts through again
    with held_interrupts(), _without_the_current_folder():
        forkserver.ensure_running()


@contextlib.contextmanager
def _without_the_current_folder() -> Iterator[None]:
    """Keep a user's numba.py or pipeline/ from being loaded in place of ours."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until processes have started.

    It reaches every process of the terminal, and the build alone decides what it means: what is
    started here inherits that it is blocked. Any thread of this process may still take it.
    """
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    is_ours = callable(handler) and threading.current_thread() is threading.main_thread()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if is_ours:
        signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if held:
            signal.raise_signal(signal.SIGINT)


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
        work: A module-level function that calls `count_image` as it goes.
        tasks: One per shard.
        workers: Processes.
        timeout_s: Without another image through, after which a worker counts as hung.
        retry: Gives the task to run after the worker of one died or hung.
        num_images: Images of all tasks.
        progress: Reports finished images, about ten times a second.

    Raises:
        SrpError: If workers cannot be started.
    """
    crew = _Crew(work, tasks, timeout_s=timeout_s, retry=retry)
    try:
        while crew.has_work():
            crew.fill(workers)
            yield from crew.look()
            progress.update("building shards", sum(crew.counters[1:]), num_images)
    finally:
        crew.stop()


class _Crew:
    """The workers of one build, and the tasks that are left for them; numbers begin at 1."""

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
        self._left = deque(self._tasks)
        self._timeout_s = timeout_s
        self._retry = retry
        self._busy: list[_Worker] = []
        self._retired: list[_Worker] = []
        self._looked_s = time.monotonic()

    def has_work(self) -> bool:
        """Whether a task is left or under way."""
        return bool(self._left or self._busy)

    def fill(self, workers: int) -> None:
        """Start workers as long as there are tasks for them."""
        num_starting = sum(worker.number is None for worker in self._busy)
        for _ in range(min(workers - len(self._busy), len(self._left) - num_starting)):
            pipe, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(self._work, self.counters, theirs), daemon=True
            )
            try:
                with held_interrupts():
                    process.start()
            except (EOFError, ConnectionError) as error:
                raise SrpError(
                    "the server that workers are forked from must start; it ended while it loaded "
                    "numba and Pillow. See the lines above, and try: "
                    "python -c 'import pipeline.build.worker'"
                ) from error
            theirs.close()  # so that the pipe ends with the worker
            self._busy.append(_Worker(process=process, pipe=pipe))

    def look(self) -> Iterator[Any]:
        """Wait a moment for results; give out tasks, and end what hangs."""
        ready = wait([worker.pipe for worker in self._busy], timeout=_POLL_S)
        now_s = time.monotonic()
        waited_s = min(now_s - self._looked_s, _LONGEST_WAIT_S)
        self._looked_s = now_s
        for worker in tuple(self._busy):
            if worker.pipe in ready:
                yield from self._hear(worker)
            elif self._hangs(worker, waited_s):
                self._lose(worker, "hung")

    def _hear(self, worker: _Worker) -> Iterator[Any]:
        try:
            outcome = worker.pipe.recv()
        except (EOFError, OSError):
            self._lose(worker, "died")
            return
        if outcome:
            result, error = outcome
            if error:
                raise error
            yield result
        try:
            self._give(worker)
        except OSError:
            self._lose(worker, "died")

    def _give(self, worker: _Worker) -> None:
        """Send the next task; without one the worker ends."""
        if not self._left:
            self._busy.remove(worker)
            self._retired.append(worker)
            worker.pipe.close()
            return
        worker.number = self._left.popleft()
        worker.num_done, worker.idle_s = 0, 0
        self.counters[worker.number] = 0
        worker.pipe.send((worker.number, self._tasks[worker.number]))

    def _hangs(self, worker: _Worker, waited_s: float) -> bool:
        num_done = self.counters[worker.number] if worker.number else 0
        worker.idle_s = worker.idle_s + waited_s if num_done == worker.num_done else 0
        worker.num_done = num_done
        return worker.idle_s > (self._timeout_s if worker.number else _START_S)

    def _lose(self, worker: _Worker, how: str) -> None:
        """Make sure that a worker is gone, and put its task first among those that are left."""
        worker.process.kill()
        worker.process.join(_GRACE_S)
        worker.pipe.close()
        self._busy.remove(worker)
        if worker.number is None:
            raise SrpError(
                f"a worker must be ready for its first shard; got one that {how} before (out of "
                "memory?). Run the same command again with fewer --workers: finished shards are "
                "kept."
            )
        num_done = self.counters[worker.number]
        task = self._retry(self._tasks[worker.number], num_done, how)
        self._tasks[worker.number] = task
        self._left.appendleft(worker.number)

    def stop(self) -> None:
        """Let all workers end, then kill those that do not."""
        self.counters[_STOP] = 1
        crew = self._busy + self._retired
        for worker in crew:
            worker.pipe.close()
        end_s = time.monotonic() + _GRACE_S
        try:
            for worker in crew:
                worker.process.join(max(0, end_s - time.monotonic()))
        finally:  # also when interrupted once more
            for worker in crew:
                worker.process.kill()
            for worker in crew:
                worker.process.join(_GRACE_S)
