"""SPDL: its pipeline of threads. It has no format, so it gets arrays, memory-mapped."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from spdl.pipeline import PipelineBuilder

from pipeline.bench.loaders.protocol import Batch, Epoch, Images, Task, cut_into


def build(layout: str, images: Images, out: Path) -> None:
    """Write canvases and glimpses as one `.npy` each."""
    del layout
    for name in ("canvases", "glimpses", "labels"):
        shutil.copyfile(images.folder / f"{name}.npy", out / f"{name}.npy")


def open_loader(task: Task, images: Images) -> Epoch:
    """Read by index, in a new order for each epoch; each thread makes whole batches."""
    own = Images(Path(task.out), task.boxes)
    # Plain views: a memmap's own indexing is slow.
    canvases, glimpses = np.asarray(own.canvases), np.asarray(own.glimpses)
    sizes = images.sizes()
    rng = random.Random(0)  # noqa: S311  # an order, no secret

    def load(indices: list[int]) -> Batch:
        if task.mode == "canvases":
            return Batch(canvases[indices], glimpses[indices], own.labels[indices])
        shape = (len(indices), sizes.num_crops, sizes.crop_px, sizes.crop_px, 3)
        crops = np.empty(shape, np.uint8)
        for row, index in enumerate(indices):
            cut_into(crops[row], canvases[index], task.boxes)
        return Batch(crops.transpose(0, 1, 4, 2, 3), glimpses[indices], own.labels[indices])

    def epoch() -> Iterator[Batch]:
        order = rng.sample(range(len(own)), len(own))
        size = task.batch_size
        builder = PipelineBuilder().add_source(
            order[start : start + size] for start in range(0, len(order), size)
        )
        builder = builder.pipe(load, concurrency=task.workers).add_sink(2)
        pipeline = builder.build(num_threads=task.workers)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch
