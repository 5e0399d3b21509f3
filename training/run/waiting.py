"""The batches of a training that may be slow to come: how long it waits, and how a wait ends."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipeline.common.errors import DownloadError
from training.data.processes import Process
from training.data.shards import Batch
from training.run.signals import InterruptedWaitError, Stop


class AwaitedBatches:
    """The rest of an epoch's batches.

    A process alone ends the epoch early, between two steps, where a signal comes while it waits or
    the shards cannot be fetched any more: what it has done can be saved. Of several processes each
    waits to the end, since they stop together, and raises its own error.

    Attributes:
        waited_s: Time spent waiting for the next batch so far, s.
        lost: Why the shards cannot be fetched any more; None while they can.
    """

    def __init__(self, batches: Iterable[Batch], stop: Stop, process: Process) -> None:
        """Read nothing yet."""
        self.waited_s = 0.0
        self.lost: DownloadError | None = None
        self._batches, self._stop, self._process = batches, stop, process

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        while True:
            try:
                with self._counted(), interruptible(self._stop, self._process):
                    batch = next(batches, None)
            except InterruptedWaitError:
                return
            except DownloadError as error:
                if self._process.world_size > 1:
                    raise
                self.lost = error
                return
            if batch is None:
                return
            yield batch

    @contextmanager
    def _counted(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.waited_s += time.monotonic() - started


@contextmanager
def interruptible(stop: Stop, process: Process) -> Iterator[None]:
    """Let a signal end this context at once, unless other processes would go on without this one.

    Raises:
        InterruptedWaitError: If there was one.
    """
    if process.world_size > 1:
        yield
        return
    with stop.interrupting():
        yield
