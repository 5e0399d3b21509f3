"""Where shards are built: on this machine, one process per worker, each owning whole shards."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import Array, c_int64
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait as wait_for_end
from typing import TypeVar

from pipeline.errors import SrpError

Task = TypeVar("Task")
Result = TypeVar("Result")

_POLL_S = 0.1
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


def _start_worker(counters: "Array[c_int64]") -> None:
    global _counters
    _counters = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server may have been started elsewhere
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the build was killed: nobody would ever send it more work."""
    parent = multiprocessing.parent_process()
    if parent:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _work_on(work: Callable[[Task], Result], number: int, task: Task) -> Result:
    global _own
    _own = number
    return work(task)


def start_server(modules: Sequence[str]) -> None:
    """Start the process that workers are forked from; it loads what all of them need, once.

    Call it early: it does so while the build lists the source. Later builds of this process use
    the same server.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # first, since it would let interrupts through again
    with _held_interrupts(), _without_the_current_folder():
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
def _held_interrupts() -> Iterator[None]:
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


def run_local(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    on_images: Callable[[int], None],
) -> Iterator[Result]:
    """Run tasks in processes and yield their results as they come.

    Args:
        work: A module-level function that calls `count_image` as it goes.
        tasks: One per shard.
        workers: Processes.
        on_images: Called about ten times a second with the images that are through.

    Raises:
        SrpError: If a worker process died.
    """
    context = multiprocessing.get_context("forkserver")
    counters = context.RawArray(c_int64, 1 + len(tasks))
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)) or 1,
        mp_context=context,
        initializer=_start_worker,
        initargs=(counters,),
    )
    try:
        with _held_interrupts():
            numbered = enumerate(tasks, start=1)
            pending = {pool.submit(_work_on, work, number, task) for number, task in numbered}
        while pending:
            finished, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            on_images(sum(counters[1:]))
            for future in finished:
                yield future.result()
    except (EOFError, ConnectionError) as error:
        raise SrpError(
            "the server that workers are forked from must start; it ended while it loaded numba "
            "and Pillow. See the lines above, and try: python -c 'import pipeline.worker'"
        ) from error
    except BrokenProcessPool as error:
        raise SrpError(
            "every worker must live until its shard is written; one was killed (out of memory?). "
            "Run the same command again with fewer --workers: finished shards are kept."
        ) from error
    finally:
        counters[_STOP] = 1
        pool.shutdown(wait=True, cancel_futures=True)
