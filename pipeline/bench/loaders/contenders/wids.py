"""wids: webdataset's tars by index, through torch's DataLoader, shuffled as a whole."""

from functools import partial
from pathlib import Path
from typing import Any

import wids
from torch.utils.data import DataLoader

from pipeline.bench.loaders.protocol import Epoch, Images, Sizes, Task, record_of
from pipeline.bench.loaders.tar import write_shards
from pipeline.bench.loaders.tensors import Collate


def build(layout: str, images: Images, out: Path) -> None:
    """Write canvas and glimpses as one raw record."""
    del layout

    def members(index: int) -> dict[str, bytes]:
        return {"raw": record_of(images, index), "cls": b"%d" % images.labels[index]}

    write_shards(images, out, members)


def open_loader(task: Task, images: Images) -> Epoch:
    """Read by index, from worker processes."""
    shards = [
        {"url": str(path), "nsamples": wids.wids.compute_num_samples(str(path))}
        for path in sorted(Path(task.out).glob("*.tar"))
    ]
    # Where the tars are local they are mapped where they lie, and kept.
    dataset = wids.ShardListDataset(
        shards, transformations=[], localname=str, keep=True, lru_size=len(shards)
    )
    dataset.add_transform(partial(_split, sizes=images.sizes()))
    loader = DataLoader(
        dataset,
        batch_size=task.batch_size,
        shuffle=True,
        **task.processes(),
        collate_fn=Collate(boxes=task.cut_boxes),
    )

    return lambda: loader


def _split(sample: dict[str, Any], sizes: Sizes) -> tuple[Any, Any, int]:
    return (*sizes.split(sample[".raw"].getbuffer()), int(sample[".cls"].read()))
