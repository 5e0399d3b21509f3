"""The process that workers are forked from, and how processes start without hearing Ctrl-C."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, resource_tracker


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
