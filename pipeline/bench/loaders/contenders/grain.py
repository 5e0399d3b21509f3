"""Grain: its own ArrayRecord files, read by threads, shuffled as a whole."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pipeline.bench.loaders.protocol import (
    Batch,
    Box,
    Epoch,
    Images,
    Sizes,
    Task,
    cut_into,
    record_of,
)

LABEL_BYTES = 8


def build(layout: str, images: Images, out: Path) -> None:
    """Write label, canvas and glimpses as one raw record, not compressed."""
    del layout
    writer = ArrayRecordWriter(str(out / "images.array_record"), "group_size:1,uncompressed")
    for index in range(len(images)):
        writer.write(np.int64(images.labels[index]).tobytes() + record_of(images, index))
    writer.close()


def open_loader(task: Task, images: Images) -> Epoch:
    """Read by index; each thread makes whole batches."""
    source = grain.sources.ArrayRecordDataSource(str(Path(task.out) / "images.array_record"))
    options = grain.ReadOptions(num_threads=task.workers, prefetch_buffer_size=2 * task.workers)
    number = iter(range(2**31))

    collate = partial(_collate, sizes=images.sizes(), boxes=task.cut_boxes)

    def epoch() -> Iterator[Batch]:
        dataset = grain.MapDataset.source(source).shuffle(seed=next(number))
        for batch in dataset.batch(task.batch_size, batch_fn=collate).to_iter_dataset(options):
            yield Batch(*batch)

    return epoch


def _collate(records: Sequence[bytes], *, sizes: Sizes, boxes: tuple[Box, ...]) -> Batch:
    num_images = len(records)
    crop_shape = (sizes.num_crops, sizes.crop_px, sizes.crop_px, 3)
    pixels = np.empty((num_images, *(crop_shape if boxes else sizes.canvas_shape)), np.uint8)
    glimpses = np.empty((num_images, *sizes.glimpses_shape), np.uint8)
    labels = np.empty(num_images, np.int64)
    for row, record in enumerate(records):
        data = memoryview(record)
        labels[row] = int.from_bytes(data[:LABEL_BYTES], "little")
        canvas, glimpses[row] = sizes.split(data[LABEL_BYTES:])
        if boxes:
            cut_into(pixels[row], canvas, boxes)
        else:
            pixels[row] = canvas
    return Batch(pixels.transpose(0, 1, 4, 2, 3) if boxes else pixels, glimpses, labels)
