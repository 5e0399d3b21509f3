"""From indices to batches: threads copy samples from mapped shards into reused buffers.

A batch is larger than the caches, and fresh memory costs as much as filling it again, page by page;
so a few buffers take turns. Reading is copying, for which threads are enough.

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
from pipeline.read.memory_map import Ahead
from pipeline.read.reader import ShardReader
from pipeline.read.sampler import Indices

PREFETCH = 2  # batches in flight for each reading thread
_LINE = 64  # bytes of a cache line, which streaming stores should fill completely

Allocate = Callable[[tuple[int, ...]], Pixels]


class ArrayBatch(NamedTuple):
    """B samples, valid until the next batch; copy them to keep them.

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
        wanted: BatchSpec,
        *,
        workers: int,
        allocate: Allocate | None = None,
    ) -> None:
        """Open a split.

        Args:
            reader: Reader of the split.
            wanted: What batches carry.
            workers: Threads.
            allocate: Allocates uint8 arrays of a shape, for example in pinned memory.

        Raises:
            ConfigError: If the shards lack what batches should carry.
        """
        self.reader = reader
        self._collator = Collator(reader, wanted)
        self._workers = workers
        self._allocate = allocate or aligned
        self._spare: list[Arrays] = []

    def num_bytes(self, num_samples: int) -> int:
        """Count the bytes of the arrays that hold so many samples."""
        return sum(prod(shape) for shape in self._collator.shapes(num_samples) if shape)

    def batches(self, index_batches: Collection[Indices]) -> Iterator[ArrayBatch]:
        """Read batches of the given samples, in order, a few in advance."""
        size = max(map(len, index_batches), default=0)
        shard_batches = map(self.reader.shards_of, index_batches)
        pending: deque[tuple[Future[ArrayBatch], Arrays]] = deque()
        with (
            ThreadPoolExecutor(self._workers, thread_name_prefix="srp-read") as pool,
            self.reader.mapped.ahead(shard_batches) as ahead,  # ends first: threads wait for it
        ):
            try:
                for indices_B in index_batches:
                    buffers = self._take(size)
                    pending.append((pool.submit(self._read, indices_B, buffers, ahead), buffers))
                    if len(pending) > PREFETCH * self._workers:
                        yield from self._hand_over(pending, ahead)
                while pending:
                    yield from self._hand_over(pending, ahead)
            finally:
                for future, _ in pending:
                    future.cancel()

    def _hand_over(
        self, pending: deque[tuple[Future[ArrayBatch], Arrays]], ahead: Ahead
    ) -> Iterator[ArrayBatch]:
        future, buffers = pending.popleft()
        yield future.result()
        self._spare.append(buffers)
        ahead.done()

    def _take(self, size: int) -> Arrays:
        """Return buffers of this size, used ones if there are any."""
        shapes = self._collator.shapes(size)
        while self._spare:
            buffers = self._spare.pop()
            if tuple(None if buffer is None else buffer.shape for buffer in buffers) == shapes:
                return buffers
        return Arrays(*(None if shape is None else self._allocate(shape) for shape in shapes))

    def _read(self, indices_B: Indices, buffers: Arrays, ahead: Ahead) -> ArrayBatch:
        ahead.wait(self.reader.shards_of(indices_B))
        count = len(indices_B)
        arrays = Arrays(*(None if buffer is None else buffer[:count] for buffer in buffers))
        self._collator.fill(indices_B, arrays)
        labels_B = self.reader.labels_N[indices_B].astype(np.int64)
        return ArrayBatch(arrays, labels_B, indices_B)


def aligned(shape: tuple[int, ...]) -> Pixels:
    """Allocate memory that starts at a cache line."""
    size = prod(shape)
    block = np.empty(size + _LINE, np.uint8)
    start = -block.ctypes.data % _LINE
    return block[start : start + size].reshape(shape)
