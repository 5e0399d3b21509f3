"""From indices to batches: threads copy samples from mapped shards into buffers that are reused.

A batch is larger than the caches, and fresh memory costs as much as filling it once more, page
by page; so a few buffers take turns. Reading is copying, and threads are enough for that.

Axes: B samples.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.pixels import Pixels
from pipeline.read.collate import Arrays, BatchSpec, Collator
from pipeline.read.reader import ShardReader
from pipeline.read.sampler import Indices

PREFETCH = 2  # batches in flight for each reading thread
_LINE = 64  # bytes of a cache line, which streaming stores want to fill as a whole

Allocate = Callable[[tuple[int, ...]], Pixels]


class ArrayBatch(NamedTuple):
    """B samples, valid until the next batch is asked for; copy what is to be kept.

    `indices_B` are positions in the split.
    """

    arrays: Arrays
    labels_B: NDArray[np.int64]
    indices_B: Indices


class BatchLoader:
    """Reads batches of one split with threads."""

    def __init__(
        self,
        reader: ShardReader,
        content: BatchSpec,
        *,
        workers: int,
        allocate: Allocate | None = None,
    ) -> None:
        """Open a split.

        Args:
            reader: Of the split.
            content: What batches carry.
            workers: Threads.
            allocate: Gives uint8 arrays of a shape, such as pinned memory.

        Raises:
            ConfigError: If the shards do not hold what batches should carry.
        """
        self.reader = reader
        self._collator = Collator(reader, content)
        self._workers = workers
        self._allocate = allocate or aligned
        self._spare: list[Arrays] = []

    def batches(self, index_batches: Collection[Indices]) -> Iterator[ArrayBatch]:
        """Read batches of the given samples, in the given order, some ahead of their use."""
        size = max(map(len, index_batches), default=0)
        pending: deque[tuple[Future[ArrayBatch], Arrays]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="srp-read") as pool:
            try:
                for indices_B in index_batches:
                    buffers = self._take(size)
                    pending.append((pool.submit(self._read, indices_B, buffers), buffers))
                    if len(pending) > PREFETCH * self._workers:
                        yield from self._hand_over(pending)
                while pending:
                    yield from self._hand_over(pending)
            finally:
                for future, _ in pending:
                    future.cancel()

    def _hand_over(self, pending: deque[tuple[Future[ArrayBatch], Arrays]]) -> Iterator[ArrayBatch]:
        future, buffers = pending.popleft()
        yield future.result()
        self._spare.append(buffers)

    def _take(self, size: int) -> Arrays:
        """Give buffers for as many samples, used before if there are such."""
        shapes = self._collator.shapes(size)
        while self._spare:
            buffers = self._spare.pop()
            if tuple(None if buffer is None else buffer.shape for buffer in buffers) == shapes:
                return buffers
        return Arrays(*(None if shape is None else self._allocate(shape) for shape in shapes))

    def _read(self, indices_B: Indices, buffers: Arrays) -> ArrayBatch:
        count = len(indices_B)
        arrays = Arrays(*(None if buffer is None else buffer[:count] for buffer in buffers))
        self._collator.fill(indices_B, arrays)
        labels_B = self.reader.labels_N[indices_B].astype(np.int64)
        return ArrayBatch(arrays, labels_B, indices_B)


def aligned(shape: tuple[int, ...]) -> Pixels:
    """Allocate bytes from the start of a cache line on."""
    size = prod(shape)
    block = np.empty(size + _LINE, np.uint8)
    start = -block.ctypes.data % _LINE
    return block[start : start + size].reshape(shape)
