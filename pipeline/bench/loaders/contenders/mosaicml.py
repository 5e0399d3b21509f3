"""MosaicML Streaming: its own MDS shards, through torch's DataLoader, shuffled."""

from pathlib import Path
from typing import Any

import streaming
from torch.utils.data import DataLoader

from pipeline.bench.loaders.protocol import Epoch, Images, Sizes, Task, record_of
from pipeline.bench.loaders.tensors import Collate


def build(layout: str, images: Images, out: Path) -> None:
    """Write canvas and glimpses as one raw record, in shards of its usual size."""
    del layout
    with streaming.MDSWriter(out=str(out), columns={"raw": "bytes", "label": "int"}) as writer:
        for index, label in enumerate(images.labels.tolist()):
            writer.write({"raw": record_of(images, index), "label": label})


class _Canvases(streaming.StreamingDataset):  # type: ignore[misc]  # untyped where not installed
    """Gives what is in the shards, as arrays."""

    sizes: Sizes

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        sample = super().__getitem__(index)
        return (*self.sizes.split(sample["raw"]), sample["label"])


def open_loader(task: Task, images: Images) -> Epoch:
    """Read from worker processes, in a new order for each epoch."""
    streaming.base.util.clean_stale_shared_memory()
    dataset = _Canvases(local=task.out, shuffle=True, batch_size=task.batch_size)
    dataset.sizes = images.sizes()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=task.batch_size,
        **task.processes(),
        collate_fn=Collate(boxes=task.cut_boxes),
    )

    return lambda: loader
