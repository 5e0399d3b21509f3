"""What both programs' worker processes share: how they start, fail, and end with their parent."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import wait


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until processes have started.

    It reaches every process of the terminal, but only the parent handles it: processes started here
    inherit that it is blocked. Any thread of this process may still receive it.
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


@contextlib.contextmanager
def without_the_current_folder() -> Iterator[None]:
    """Keep a user's numba.py or pipeline/ from being imported in place of ours."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def end_with_parent() -> None:
    """Exit this worker when its parent is killed, in a thread."""
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)


def sendable(error: Exception) -> Exception:
    """Note on an error where it was raised; one that cannot go through a pipe is put in words."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, made on this line
    except Exception:
        return RuntimeError("\n".join(error.__notes__))
    return error
