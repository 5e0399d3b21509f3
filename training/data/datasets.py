"""A stream of samples for torch's DataLoader: each rank and worker reads its own part."""

from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline import Part, Sample, SampleStream
from training.data.processes import Process


class StreamDataset(IterableDataset[Sample]):
    """Yields decoded samples; a DataLoader over it needs a `collate_fn`, or `batch_size=None`.

    Every rank gets the same number of samples, and so does each of its workers within one, so all
    ranks take equal steps; see `pipeline.stream.partition.share_of` for what is left out.
    """

    def __init__(self, stream: SampleStream, process: Process, *, equal: bool = True) -> None:
        """Say what to stream.

        Args:
            stream: Samples of one split.
            process: Whose part to read.
            equal: Whether all ranks get equally many; False reads every sample, for evaluation.
        """
        self._stream = stream
        self._rank = process.rank
        self._world_size = process.world_size
        self._equal = equal
        # Shared memory, so that workers which outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order; call it before each iteration."""
        self._epoch.fill_(epoch)

    def num_batches(self, *, batch_size: int, num_workers: int, drop_last: bool) -> int:
        """Count the batches of a DataLoader over it, which are equally many on every rank.

        Each worker fills batches of its own, so each may end in one that is not full. (The length
        that a DataLoader gives for a stream counts only one of these, so this class has none.)

        Args:
            batch_size: Samples of a batch.
            num_workers: Workers of the DataLoader; 0 reads in the process itself.
            drop_last: Whether a worker leaves out its last batch if it is not full.
        """
        counts = [
            self._stream.count(part=self._part(worker, max(1, num_workers)), equal=self._equal)
            for worker in range(max(1, num_workers))
        ]
        return sum(
            count // batch_size if drop_last else -(-count // batch_size) for count in counts
        )

    def __iter__(self) -> Iterator[Sample]:
        """Read this rank's and worker's part of the epoch."""
        info = get_worker_info()
        part = self._part(info.id, info.num_workers) if info else self._part(0, 1)
        return self._stream.samples(int(self._epoch), part=part, equal=self._equal)

    def _part(self, worker: int, num_workers: int) -> Part:
        return Part(
            rank=self._rank,
            world_size=self._world_size,
            worker=worker,
            num_workers=num_workers,
        )
