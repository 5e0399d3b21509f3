"""DALI on the CPU: its webdataset reader, which finds members by an index file of each tar.

It reads raw arrays, all crops or the canvas, since its own operators cut crops more slowly than it
reads them. Its reader shuffles in a buffer.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from pipeline.bench.loaders.protocol import Batch, Epoch, Images, Sizes, Task
from pipeline.bench.loaders.tar import write_shards

BUFFER = 100  # images among which it shuffles
READ = ("pixels", "glimpses", "label")


def build(layout: str, images: Images, out: Path) -> None:
    """Write all crops, or the canvas, as raw bytes, and an index for each tar."""

    def members(index: int) -> dict[str, bytes]:
        pixels = images.crops(index) if layout == "crops" else images.canvases[index]
        return {
            "pixels": pixels.tobytes(),
            "glimpses": images.glimpses[index].tobytes(),
            "label": np.int64(images.labels[index]).tobytes(),
        }

    for shard in write_shards(images, out, members):
        with tarfile.open(shard) as tar:
            found = [(member.name, member.offset_data, member.size) for member in tar]
        with shard.with_suffix(".idx").open("w", encoding="ascii") as file:
            file.write(f"v1.2 {len(found) // len(READ)}\n")
            for first in range(0, len(found), len(READ)):
                parts = [
                    f"{name.partition('.')[2]} {offset} {size} {name}"
                    for name, offset, size in found[first : first + len(READ)]
                ]
                file.write(f"{' '.join(parts)}\n")


def open_loader(task: Task, images: Images) -> Epoch:
    """Run one graph on as many threads as there are workers."""
    shards = sorted(Path(task.out).glob("*.tar"))
    sizes = images.sizes()
    graph = pipeline_def(_graph)(
        [str(path) for path in shards],
        sizes=sizes,
        shape=sizes.crops_shape if task.layout == "crops" else sizes.canvas_shape,
        batch_size=task.batch_size,
        num_threads=task.workers,
        device_id=None,
        prefetch_queue_depth=2,
    )
    graph.build()

    def epoch() -> Iterator[Batch]:
        left = len(images)
        while left > 0:
            # The last batch is filled up with copies of its last image.
            pixels, glimpses, labels = (part.as_tensor() for part in graph.run())
            taken = min(left, task.batch_size)
            left -= taken
            yield Batch(
                np.asarray(pixels)[:taken],
                np.asarray(glimpses)[:taken],
                np.asarray(labels)[:taken, 0],
            )

    return epoch


def _graph(shards: list[str], *, sizes: Sizes, shape: tuple[int, ...]) -> Any:
    parts: Any = fn.readers.webdataset(
        paths=shards,
        index_paths=[str(Path(path).with_suffix(".idx")) for path in shards],
        ext=list(READ),
        random_shuffle=True,
        initial_fill=BUFFER,
        pad_last_batch=True,
    )
    pixels, glimpses, label = parts
    glimpses = fn.reshape(glimpses, shape=list(sizes.glimpses_shape))
    label = fn.reinterpret(label, dtype=types.INT64)
    return fn.reshape(pixels, shape=list(shape)), glimpses, label
