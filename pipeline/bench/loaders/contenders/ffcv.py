"""FFCV: its own `.beton`, memory-mapped, read by compiled threads into reused buffers.

`as installed` is what its documentation shows, with all crops stored. Its array decoder does not
declare itself parallel, so a second worker gains nothing; `patched` declares it at run time.
`fused` stores the canvas and cuts all crops in one compiled operation, which FFCV's interface for
operations allows.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, NDArrayField
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter

from pipeline.bench.loaders.protocol import Batch, Box, Epoch, Images, Sizes, Task

PASSES = 1000  # a million images in an epoch


class _Samples:
    """What FFCV's writer reads."""

    def __init__(self, images: Images, layout: str) -> None:
        self._images = images
        self._layout = layout

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        images = self._images
        pixels = images.crops(index) if self._layout == "crops" else images.canvases[index]
        return np.array(pixels), np.array(images.glimpses[index]), int(images.labels[index])


def build(layout: str, images: Images, out: Path) -> None:
    """Write all crops, or the canvas, as arrays."""
    sizes = images.sizes()
    shape = sizes.crops_shape if layout == "crops" else sizes.canvas_shape
    fields = {
        "pixels": NDArrayField(np.dtype("u1"), shape),
        "glimpses": NDArrayField(np.dtype("u1"), sizes.glimpses_shape),
        "label": IntField(),
    }
    writer = DatasetWriter(str(out / "images.beton"), fields, num_workers=1)
    writer.from_indexed_dataset(_Samples(images, layout))


class _ParallelDecoder(NDArrayDecoder):  # type: ignore[misc]  # untyped where not installed
    """FFCV's own, with the one line that its other decoders have."""

    def generate_code(self) -> Callable[..., Any]:
        decoder: Any = super().generate_code()
        decoder.is_parallel = True
        return decoder  # type: ignore[no-any-return]


class _CutDecoder(NDArrayDecoder):  # type: ignore[misc]  # untyped where not installed
    """Cuts all crops of a stored canvas straight into the batch."""

    def __init__(self, boxes: tuple[Box, ...], sizes: Sizes) -> None:
        super().__init__()
        self._boxes = np.array(boxes)
        self._sizes = sizes

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape = (self._sizes.num_crops, self._sizes.crop_px, self._sizes.crop_px, 3)
        dtype = np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        each = Compiler.get_iterator()
        read = self.memory_read
        boxes = self._boxes
        side = self._sizes.canvas_px

        def decoder(indices: Any, out: Any, metadata: Any, storage: Any) -> Any:
            num_crops = len(boxes)
            for place in each(indices.shape[0] * num_crops):
                image, crop = place // num_crops, place % num_crops
                data = read(metadata[indices[image]], storage)
                canvas = data.reshape(side, 3 * side)
                x0, y0, x1, y1 = boxes[crop]
                rows = out[image, crop]
                for row in range(y1 - y0):
                    rows[row].reshape(-1)[:] = canvas[y0 + row, 3 * x0 : 3 * x1]
            return out

        decoder.is_parallel = True  # type: ignore[attr-defined]
        return decoder


def open_loader(task: Task, images: Images) -> Epoch:
    """Read in a new order for each pass; one of FFCV's epochs has many passes.

    FFCV allocates new buffers for each epoch. For a thousand images that costs more than reading
    them, and for the images of a real epoch next to nothing.
    """
    plain = NDArrayDecoder if task.variant == "as installed" else _ParallelDecoder
    is_fused = task.variant == "fused"
    pixels = _CutDecoder(task.boxes, images.sizes()) if is_fused else plain()
    rng = np.random.default_rng(0)
    loader = Loader(
        str(Path(task.out) / "images.beton"),
        batch_size=task.batch_size,
        num_workers=task.workers,
        order=OrderOption.SEQUENTIAL,
        indices=np.concatenate([rng.permutation(len(images)) for _ in range(PASSES)]),
        drop_last=False,
        pipelines={
            "pixels": [pixels, ToTensor()],
            "glimpses": [plain(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )

    def batches() -> Iterator[Batch]:
        while True:
            for crops, glimpses, labels in loader:
                yield Batch(crops.permute(0, 1, 4, 2, 3) if is_fused else crops, glimpses, labels)

    return partial(_one_pass, batches(), len(images), [])


def _one_pass(batches: Iterator[Batch], num_images: int, rest: list[Batch]) -> Iterator[Batch]:
    """Take `num_images` images; `rest` keeps what a batch has of the next pass."""
    while num_images:
        batch = rest.pop() if rest else next(batches)
        taken = Batch(*(part[:num_images] for part in batch))
        if len(taken.labels) < len(batch.labels):
            rest.append(Batch(*(part[num_images:] for part in batch)))
        num_images -= len(taken.labels)
        yield taken
