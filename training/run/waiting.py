"""The batches of a training that may be slow to come: how long it waits, and how a wait ends."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

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
        batches = interruptible(self._batches, self._stop, self._process)
        while True:
            try:
                with self._counted():
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


def interruptible(batches: Iterable[Batch], stop: Stop, process: Process) -> Iterator[Batch]:
    """Yield batches; a signal ends the wait for one, unless other processes would go on alone.

    Raises:
        InterruptedWaitError: If there was one.
    """
    coming = iter(batches)
    while True:
        with stop.interrupting() if process.world_size == 1 else nullcontext():
            batch = next(coming, None)
        if batch is None:
            return
        yield batch
