"""What no loader can beat: copying the batch, and reading the bytes.

`memcpy` copies ready pixels into a reused batch, on one thread for each worker. `cat` reads files
of canvases and glimpses, one process for each worker.
"""

import ctypes
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.bench.loaders.protocol import Batch, Epoch, Images, Pixels, Task, record_of

NUM_FILES = 8
SOURCE_BATCHES = 4  # more than a processor's cache holds


def build(layout: str, images: Images, out: Path) -> None:
    """Write files of raw records for `cat`."""
    del layout
    for number, indices in enumerate(np.array_split(np.arange(len(images)), NUM_FILES)):
        with (out / f"{number}.raw").open("wb") as file:
            file.writelines(record_of(images, index) for index in indices)


def open_loader(task: Task, images: Images) -> Epoch:
    """Copy or read the bytes of one epoch."""
    if task.variant == "cat":
        return lambda: _cat(task, images)
    return _copies(task, images)


def _cat(task: Task, images: Images) -> Iterator[Batch]:
    files = sorted(str(path) for path in Path(task.out).iterdir())
    shares = [files[first :: task.workers] for first in range(task.workers)]
    running = [
        subprocess.Popen(["cat", *share], stdout=subprocess.DEVNULL)  # noqa: S603, S607
        for share in shares
        if share
    ]
    for process in running:
        if process.wait():
            raise OSError(f"cat ended in status {process.returncode}")
    yield Batch(None, None, images.labels)


def _copies(task: Task, images: Images) -> Epoch:
    num_source = min(len(images), SOURCE_BATCHES * task.batch_size)
    if task.variant == "memcpy of crops":
        pixels = np.stack([images.crops(index) for index in range(num_source)])
    else:
        pixels = np.array(images.canvases[:num_source])
    source = (pixels, np.array(images.glimpses[:num_source]))
    pool = ThreadPoolExecutor(task.workers)
    own = threading.local()  # each thread fills batches of its own, as a loader's would

    def copy(start: int) -> Batch:
        if not hasattr(own, "target"):
            # Filled, since the first touch of memory costs more than the copy.
            shapes = [(task.batch_size, *part.shape[1:]) for part in source]
            own.target = tuple(np.ones(shape, np.uint8) for shape in shapes)
        labels = images.labels[start : start + task.batch_size]
        first = start % (num_source - len(labels) + 1)
        for into, out_of in zip(own.target, source, strict=True):
            _copy(into[: len(labels)], out_of[first : first + len(labels)])
        return Batch(own.target[0], own.target[1], labels)

    return lambda: pool.map(copy, range(0, len(images), task.batch_size))


def _copy(into: Pixels, out_of: Pixels) -> None:
    """Copy in one call, which uses the processor's fastest way and lets other threads run."""
    ctypes.memmove(into.ctypes.data, out_of.ctypes.data, into.nbytes)
