"""webdataset: a stream of tars, here with a shuffle buffer, through torch's DataLoader.

`stock` is what its documentation shows: members decoded by their suffix, torch's default collate.
`tuned` reads the bytes as they are and makes batches without a needless copy.
"""

from functools import partial
from pathlib import Path
from typing import Any

import webdataset

from pipeline.bench.loaders.protocol import Batch, Epoch, Images, Sizes, Task, record_of
from pipeline.bench.loaders.tar import npy, write_shards
from pipeline.bench.loaders.tensors import Collate

BUFFER = 100  # images among which webdataset shuffles; they are held in memory


def build(layout: str, images: Images, out: Path) -> None:
    """Write crops and glimpses as `.npy`, or canvas and glimpses as one raw record."""

    def crops(index: int) -> dict[str, bytes]:
        return {
            "crops.npy": npy(images.crops(index)),
            "glimpses.npy": npy(images.glimpses[index]),
            "cls": b"%d" % images.labels[index],
        }

    def canvas(index: int) -> dict[str, bytes]:
        return {"raw": record_of(images, index), "cls": b"%d" % images.labels[index]}

    write_shards(images, out, crops if layout == "crops" else canvas)


def open_loader(task: Task, images: Images) -> Epoch:
    """Stream shards in a new order for each epoch, from worker processes."""
    shards = sorted(str(path) for path in Path(task.out).glob("*.tar"))
    dataset = webdataset.WebDataset(
        shards, shardshuffle=len(shards), detshuffle=False, empty_check=False
    ).shuffle(BUFFER)
    if task.variant == "stock":
        dataset = dataset.decode().to_tuple("crops.npy", "glimpses.npy", "cls")
        dataset = dataset.batched(task.batch_size)
    else:
        dataset = dataset.map(partial(_split, sizes=images.sizes()))
        dataset = dataset.batched(task.batch_size, collation_fn=Collate(boxes=task.cut_boxes))
    loader = webdataset.WebLoader(dataset, batch_size=None, **task.processes())
    return lambda: (Batch(*batch) for batch in loader)


def _split(sample: dict[str, Any], sizes: Sizes) -> tuple[Any, Any, int]:
    return (*sizes.split(sample["raw"]), int(sample["cls"]))
