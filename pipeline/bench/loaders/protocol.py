"""What the bench and a peer's process say to each other, and what a peer has to offer.

A peer may live in another environment, without srp's packages. So this file, and every peer's,
imports the standard library, numpy and the peer's own packages alone.
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
        peer: Name of the file in this folder.
        package: Whose version is told.
        variant: The peer's own name for what is measured.
        mode: `crops`, `canvases`, or `limit`, whose output is not checked.
        layout: The peer's own name for what it writes.
        images: Folder of what all peers are given; see `Images`.
        out: Folder that the peer's layout is in, or goes to.
        workers: Threads or processes that load.
        batch_size: Images in a batch.
        seconds: Least time that is measured, s.
        boxes: Of the crops on the canvas, px; `(x0, y0, x1, y1)`.
    """

    action: str
    peer: str
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
        """Write it on one line."""
        return json.dumps(asdict(self))

    def processes(self) -> dict[str, Any]:
        """Give what PyTorch's DataLoader and its kin are told of processes, which stay."""
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
        version: Of the peer's package.
        num_bytes: Size of the layout that was built.
        build_s: Time that building took, s.
        rate: Samples per second.
        cpu_s: Time of all cores per sample, s; None where the system does not tell.
        first_batch_s: From the imported library to the first batch, s.
        import_s: Time that importing took, s.
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
    """The images that every peer is given: canvases, glimpses and labels, in one order."""

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
        """Tell the shapes of one image."""
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
        """View a record of canvas and glimpses, one behind the other, as these."""
        flat = np.frombuffer(record, np.uint8)
        end = 3 * self.canvas_px**2
        return flat[:end].reshape(self.canvas_shape), flat[end:].reshape(self.glimpses_shape)


class Peer(Protocol):
    """What each file of this folder offers."""

    def build(self, layout: str, images: Images, out: Path) -> None:
        """Write the peer's layout into a folder that exists and is empty."""
        ...

    def open_loader(self, task: Task, images: Images) -> Epoch:
        """Make what loads one epoch after the other."""
        ...


def cut(canvas_HWC: Pixels, box: Box) -> Pixels:
    """View one box of a canvas."""
    x0, y0, x1, y1 = box
    return canvas_HWC[y0:y1, x0:x1]


def cut_into(crops_KHWC: Pixels, canvas_HWC: Pixels, boxes: Iterable[Box]) -> None:
    """Copy all boxes of a canvas to where they shall be."""
    for number, box in enumerate(boxes):
        crops_KHWC[number] = cut(canvas_HWC, box)


def record_of(images: Images, index: int) -> bytes:
    """Put a canvas and its glimpses one behind the other, as `Sizes.split` reads them."""
    return bytes(images.canvases[index].data) + bytes(images.glimpses[index].data)


def digests(batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
    """Boil all images down to label and check sums, one row each, sorted.

    Returns:
        `(N, 3)`: label, CRC-32 of the pixels and of the glimpses in C order. Peers shuffle, so
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
