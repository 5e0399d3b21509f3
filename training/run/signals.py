"""A signal stops a run between two steps, not in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedWaitError(Exception):
    """A signal came while the process waited for a batch, or validated."""


class Stop:
    """Whether a signal asks the process to stop; `wanted` is its number, or 0."""

    def __init__(self) -> None:
        """Begin without a signal."""
        self.wanted = 0
        self._interrupts = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C interrupts at once.

        SIGTERM after Ctrl-C does not count as a second one: torchrun sends it for Ctrl-C.
        """
        if self.wanted == number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.wanted = self.wanted or number
        if self._interrupts:
            self._interrupts = False  # what unwinds is not interrupted again
            raise InterruptedWaitError

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal end this context at once: nothing in it need be finished.

        Raises:
            InterruptedWaitError: If there was one.
        """
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Note SIGTERM and Ctrl-C inside this context, on the main thread alone.

    The handlers of before are restored at its end.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
