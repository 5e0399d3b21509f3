"""LitData: its own chunks, through its own loader on worker processes, shuffled."""

from functools import partial
from pathlib import Path
from typing import Any

import litdata

from pipeline.bench.loaders.protocol import Epoch, Images, Sizes, Task, record_of
from pipeline.bench.loaders.tensors import Collate


def build(layout: str, images: Images, out: Path) -> None:
    """Write canvas and glimpses as one raw record, in chunks of LitData's usual size."""
    del layout
    litdata.optimize(
        fn=partial(_sample, folder=images.folder, boxes=images.boxes),
        inputs=list(range(len(images))),
        output_dir=str(out),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
        verbose=False,
    )


def _sample(index: int, *, folder: Path, boxes: Any) -> dict[str, Any]:
    images = Images(folder, boxes)
    return {"raw": record_of(images, index), "label": int(images.labels[index])}


def open_loader(task: Task, images: Images) -> Epoch:
    """Read chunk by chunk, both chunks and their images in a new order for each epoch."""
    dataset = litdata.StreamingDataset(
        task.out, shuffle=True, transform=partial(_split, sizes=images.sizes())
    )
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=task.batch_size,
        **task.processes(),
        collate_fn=Collate(boxes=task.cut_boxes),
    )

    return lambda: loader


def _split(sample: dict[str, Any], *unused: Any, sizes: Sizes) -> tuple[Any, Any, int]:
    del unused
    return (*sizes.split(sample["raw"]), sample["label"])
