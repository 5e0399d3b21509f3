"""What the bench and a loader's process send each other, and what a loader's file must offer.

A loader may live in another environment, without srp's packages. So this file, and every loader's,
imports only the standard library, numpy and the loader's own packages.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class Batch(NamedTuple):
    """What a loader hands over; arrays of any library that numpy can read.

    Attributes:
        pixels: Uint8, crops `(B, K, 3, c, c)` with any strides, or canvases `(B, C, C, 3)`.
        glimpses: Uint8 `(B, K, 1, s, s)`.
        labels: Integers, B in all.
    """

    pixels: Any
    glimpses: Any
    labels: Any


Epoch = Callable[[], Iterable[Batch]]
"""Gives all images once; called once for each epoch."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process is asked to do.

    Attributes:
        action: `build` or `turn`.
        loader: Name of the file in `contenders/`.
        package: The package whose version is reported.
        variant: The loader's own name for what is measured.
        mode: `crops`, `canvases`, or `limit`, whose output is not checked.
        layout: The loader's own name for what it writes.
        images: Folder of what all loaders are given; see `Images`.
        out: Folder that the loader's layout is in, or goes to.
        workers: Threads or processes that load.
        batch_size: Images in a batch.
        seconds: Least time that is measured, s.
        boxes: Places of the crops on the canvas, px; `(x0, y0, x1, y1)`.
    """

    action: str
    loader: str
    package: str
    variant: str
    mode: str
    layout: str
    images: str
    out: str
    workers: int
    batch_size: int
    seconds: float
    boxes: tuple[Box, ...]

    def to_json(self) -> str:
        """Write the task on one line."""
        return json.dumps(asdict(self))

    @property
    def cut_boxes(self) -> tuple[Box, ...]:
        """Boxes to cut from each canvas; none where whole canvases are handed over."""
        return self.boxes if self.mode == "crops" else ()

    def processes(self) -> dict[str, Any]:
        """Give the arguments of PyTorch's DataLoader, and of others like it, for its workers."""
        return {"num_workers": self.workers, "persistent_workers": True, "prefetch_factor": 2}


def task_from_json(text: str) -> Task:
    """Read what `to_json` wrote."""
    fields = json.loads(text)
    fields["boxes"] = tuple(tuple(box) for box in fields["boxes"])
    return Task(**fields)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a process found.

    Attributes:
        problem: Why there are no figures; None if there are.
        missing: The module that cannot be imported, if that is the problem.
        version: Version of the loader's package.
        num_bytes: Size of the layout that was built.
        build_s: Time to build it, s.
        rate: Samples per second.
        cpu_s: Time of all cores per sample, s; None where the system does not say.
        first_batch_s: From the imported library to the first batch, s.
        import_s: Time to import the library, s.
    """

    problem: str | None = None
    missing: str | None = None
    version: str = ""
    num_bytes: int | None = None
    build_s: float | None = None
    rate: float | None = None
    cpu_s: float | None = None
    first_batch_s: float | None = None
    import_s: float | None = None


class Images:
    """The images that every loader is given: canvases, glimpses and labels, in one order."""

    def __init__(self, folder: Path, boxes: tuple[Box, ...]) -> None:
        self.folder = folder
        self.boxes = boxes
        self.canvases = np.load(folder / "canvases.npy", mmap_mode="r")
        self.glimpses = np.load(folder / "glimpses.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def crops(self, index: int) -> Pixels:
        """Cut one image's crops, uint8 `(K, 3, c, c)`, contiguous."""
        views = [cut(self.canvases[index], box).transpose(2, 0, 1) for box in self.boxes]
        return np.stack(views)

    def sizes(self) -> "Sizes":
        """Give the shapes of one image."""
        x0, _, x1, _ = self.boxes[0]
        return Sizes(
            num_crops=len(self.boxes),
            canvas_px=self.canvases.shape[1],
            crop_px=x1 - x0,
            glimpse_px=self.glimpses.shape[-1],
        )


class Sizes(NamedTuple):
    """Shapes of one image's arrays, px."""

    num_crops: int
    canvas_px: int
    crop_px: int
    glimpse_px: int

    @property
    def canvas_shape(self) -> tuple[int, int, int]:
        """Channels last."""
        return (self.canvas_px, self.canvas_px, 3)

    @property
    def crops_shape(self) -> tuple[int, int, int, int]:
        """Channels first."""
        return (self.num_crops, 3, self.crop_px, self.crop_px)

    @property
    def glimpses_shape(self) -> tuple[int, int, int, int]:
        """Channels first."""
        return (self.num_crops, 1, self.glimpse_px, self.glimpse_px)

    def split(self, record: Any) -> tuple[Pixels, Pixels]:
        """View the canvas and the glimpses of one record."""
        flat = np.frombuffer(record, np.uint8)
        end = 3 * self.canvas_px**2
        return flat[:end].reshape(self.canvas_shape), flat[end:].reshape(self.glimpses_shape)


class LoaderModule(Protocol):
    """What each file of `contenders/` offers."""

    def build(self, layout: str, images: Images, out: Path) -> None:
        """Write the loader's layout into a folder that exists and is empty."""
        ...

    def open_loader(self, task: Task, images: Images) -> Epoch:
        """Make what loads one epoch after the other."""
        ...


def cut(canvas_HWC: Pixels, box: Box) -> Pixels:
    """View one box of a canvas."""
    x0, y0, x1, y1 = box
    return canvas_HWC[y0:y1, x0:x1]


def cut_into(crops_KHWC: Pixels, canvas_HWC: Pixels, boxes: Iterable[Box]) -> None:
    """Copy all boxes of a canvas into a batch."""
    for number, box in enumerate(boxes):
        crops_KHWC[number] = cut(canvas_HWC, box)


def record_of(images: Images, index: int) -> bytes:
    """Put a canvas and its glimpses into one record, which `Sizes.split` reads."""
    return bytes(images.canvases[index].data) + bytes(images.glimpses[index].data)


def digests(batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
    """Reduce all images to label and checksums, one row each, sorted.

    Returns:
        `(N, 3)`: label, CRC-32 of the pixels and of the glimpses in C order. Loaders shuffle, so
        rows are compared without their order.
    """
    rows = [row for batch in batches for row in _digests_of(batch)]
    table = np.array(rows, np.int64).reshape(-1, 3)
    return table[np.lexsort(table.T)]


def _digests_of(batch: Batch) -> Iterator[tuple[int, int, int]]:
    pixels, glimpses = np.asarray(batch.pixels), np.asarray(batch.glimpses)
    if pixels.dtype != np.uint8 or glimpses.dtype != np.uint8:
        raise TypeError(f"pixels are {pixels.dtype}, glimpses {glimpses.dtype}, not uint8")
    labels = np.asarray(batch.labels).reshape(-1)
    for image, small, label in zip(pixels, glimpses, labels, strict=True):
        yield int(label), _crc32(image), _crc32(small)


def _crc32(pixels: Pixels) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data)
