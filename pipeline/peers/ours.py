"""srp's own reader, on threads. A stand-in until the loader proper takes its place."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline import manifest
from pipeline.peers.turn import Batch, Epoch, Images, Task
from pipeline.reader import IndexedReader


def build(layout: str, images: Images, out: Path) -> None:
    """Write nothing: the shards are there."""


def open_loader(task: Task, images: Images) -> Epoch:
    """Read shards by index, in a new order for each epoch; each thread fills whole batches."""
    folder = Path(task.out)
    known = manifest.load(folder)
    reader = IndexedReader(folder, known, known.of_split("train"))
    sizes = images.sizes()
    rng = np.random.default_rng(0)
    pool = ThreadPoolExecutor(task.workers)

    def load(indices: list[int]) -> Batch:
        crops = np.empty((len(indices), *sizes.crops_shape), np.uint8)
        glimpses = np.empty((len(indices), *sizes.glimpses_shape), np.uint8)
        labels = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            sample = reader.read(index)
            for number, crop in enumerate(sample.crops):
                crops[row, number] = crop
            glimpses[row] = sample.small_glimpses
            labels[row] = sample.label
        return Batch(crops, glimpses, labels)

    def epoch() -> Iterator[Batch]:
        order = rng.permutation(len(images)).tolist()
        ahead: deque[Future[Batch]] = deque()
        for start in range(0, len(order), task.batch_size):
            ahead.append(pool.submit(load, order[start : start + task.batch_size]))
            if len(ahead) > task.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    return epoch
