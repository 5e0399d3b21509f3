"""Stop between two steps when asked to, instead of in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether somebody wants the process to end; `wanted` is the signal, or 0."""

    def __init__(self) -> None:
        """Begin with nobody who does."""
        self.wanted = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C interrupts at once.

        SIGTERM after Ctrl-C is no second thought: torchrun passes one on as the other.
        """
        if self.wanted == number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.wanted = self.wanted or number


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Note SIGTERM and Ctrl-C while it lasts; elsewhere than on the main thread nothing is noted.

    What handled them before does so again afterwards.
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
