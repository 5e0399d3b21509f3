"""NVIDIA DALI as a decoder; with the bench's loader, the only file that imports it.

On the CPU, DALI decodes plain JPEGs, bit for bit as Pillow, and `rules.views_of` makes the views.
On the GPU, DALI also resizes and cuts.

Pillow opens every file and applies the rules, so they are the same for every decoder: Pillow
decodes or rejects what is not a plain and sound JPEG, and what DALI cannot read.
"""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math
from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined] # its own stub lacks it

from pipeline.common.errors import ConfigError, ImageError, SrpError
from pipeline.decode.jpeg_markers import is_sound
from pipeline.decode.pillow import PillowDecoder
from pipeline.decode.rules import Tag, Views, is_plain_jpeg, opened, views_of
from pipeline.format.crops import CropLayout
from pipeline.format.spec import DataSpec
from pipeline.pixels.resize import SourceBox, edge_weight

BATCH = 32  # more is no faster on the CPU
BATCH_PIXELS = 100_000_000  # 300 MB decoded

# Faults of the device, not of an image: decoding with Pillow instead would hide them.
DEVICE_FAULT = re.compile(r"out of memory|bad_alloc|CUDA (runtime|driver) API error", re.IGNORECASE)

# Pillow's weights of gray; they are exact in 32-bit floats.
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
# DALI's float resize is off by up to 0.002; Pillow rounds halves up.
HALF_UP = 1 / 1024

Node = Any  # DALI's nodes have no types
Size = tuple[int, int]


class DaliDecoder:
    """Decodes batches, one ahead of the images that the caller takes.

    Args:
        spec: Names the device, and says what is made of an image.
        num_threads: DALI's own threads.

    Raises:
        ConfigError: If the device is a GPU and there is none.
    """

    def __init__(self, spec: DataSpec, *, num_threads: int) -> None:
        if spec.device == "gpu" and not GetCUDADeviceCount():
            raise ConfigError(
                "--device gpu needs an NVIDIA GPU and its driver; got none. Use --device cpu."
            )
        self._spec = spec
        self._device = spec.device
        self._num_threads = num_threads
        self._pillow = PillowDecoder(spec)
        self._pipeline: Any = None

    @property
    def library(self) -> str:
        """Versions of DALI, and of what decodes all but plain JPEGs."""
        return f"dali {version('nvidia-dali-cuda130')}, {self._pillow.library}"

    def decode(
        self, files: Iterable[tuple[Tag, bytes | ImageError]]
    ) -> Iterator[tuple[Tag, Views | ImageError]]:
        """Decode a batch while the caller uses the views of the one before."""
        with ThreadPoolExecutor(1) as thread:
            ahead: deque[tuple[tuple[Tag, ...], Any]] = deque()
            for batch in _batches(files):
                tags, data = zip(*batch, strict=True)
                ahead.append((tags, thread.submit(self._decode_batch, data)))
                if len(ahead) > 1:
                    tags, decoded = ahead.popleft()
                    yield from zip(tags, decoded.result(), strict=True)
            for tags, decoded in ahead:
                yield from zip(tags, decoded.result(), strict=True)

    def _decode_batch(self, files: Sequence[bytes | ImageError]) -> list[Views | ImageError]:
        plain = {
            number: (data, size)
            for number, data in enumerate(files)
            if not isinstance(data, ImageError) and (size := self._plain_size(data))
        }
        found = self._run_or_halve(
            [data for data, _ in plain.values()], [size for _, size in plain.values()]
        )
        by_number = dict(zip(plain, found, strict=True))
        decoded = [
            by_number.get(number) or self._pillow.decode_one(data)
            for number, data in enumerate(files)
        ]
        num_failed = sum(isinstance(decoded[number], Views) for number in plain)
        if num_failed > 1 and not any(found):
            raise SrpError(
                f"DALI failed on all of {num_failed} images that Pillow decodes (is its device "
                "gone?). Run the same command again, or use --device cpu."
            )
        return decoded

    def _plain_size(self, data: bytes) -> Size | None:
        """Read the size of a file that DALI may decode; None leaves the file to Pillow."""
        try:
            with opened(data, max_pixels=self._spec.max_pixels) as image:
                size = image.size if is_plain_jpeg(image, self._spec) else None
        except ImageError:
            return None  # Pillow gives the reason
        return size if size and is_sound(data) else None

    def _run_or_halve(self, files: list[bytes], sizes: list[Size]) -> list[Views | None]:
        """Decode what DALI can; it fails a batch for one image, and seldom names it."""
        if not files:
            return []
        if len(files) == 1 or sum(width * height for width, height in sizes) <= BATCH_PIXELS:
            try:
                return list(self._run(files, sizes))
            except RuntimeError as error:
                self._pipeline = None
                reason = " ".join(str(error).split())
                if DEVICE_FAULT.search(reason):
                    raise SrpError(
                        f"DALI's device failed: {reason[:200]}. "
                        "Lower --workers, or use --device cpu."
                    ) from error
            if len(files) == 1:
                return [None]
        half = len(files) // 2
        first = self._run_or_halve(files[:half], sizes[:half])
        return first + self._run_or_halve(files[half:], sizes[half:])

    def _run(self, files: list[bytes], sizes: list[Size]) -> list[Views]:
        data = [np.frombuffer(file, np.uint8) for file in files]
        if self._pipeline is None:
            graph = view_graph(self._spec, "gpu") if self._device == "gpu" else _decode_graph
            self._pipeline = make_pipeline(
                graph, device=self._device, num_threads=self._num_threads
            )
        if self._device == "gpu":
            places = source_places(sizes, self._spec.crop_layout)
            return views_from(
                self._pipeline.run(data=data, places=places), sizes, self._spec.crop_size
            )
        (images,) = self._pipeline.run(data=data)
        return [
            views_of(np.asarray(images[number]), self._spec, width=width, height=height)
            for number, (width, height) in enumerate(sizes)
        ]


def _batches(
    files: Iterable[tuple[Tag, bytes | ImageError]],
) -> Iterator[list[tuple[Tag, bytes | ImageError]]]:
    remaining = iter(files)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def make_pipeline(graph: Callable[[], Any], *, device: str, num_threads: int) -> Any:
    """Build a pipeline that runs one batch at a time, without prefetching."""
    pipeline = pipeline_def(graph)(
        batch_size=BATCH,
        num_threads=num_threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=1,
    )
    pipeline.build()
    return pipeline


def _decode_graph() -> Node:
    data = fn.external_source(name="data", dtype=types.UINT8, ndim=1)
    return _decoded(data, "cpu")


def _decoded(data: Node, device: str) -> Node:
    # Pillow handles orientation: DALI reads only EXIF's, and crashes on a file with two.
    options = {"output_type": types.RGB, "adjust_orientation": False, "use_fast_idct": False}
    if device == "gpu":
        # With a hardware decoder, an image's pixels would depend on its place in the batch.
        options |= {"device": "mixed", "jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0}
    return fn.decoders.image(data, **options)


def view_graph(spec: DataSpec, device: str) -> Callable[[], tuple[Node, ...]]:
    """Define the graph from bytes to views on one device.

    Its inputs are `data`, the files, and `places`, from `source_places`. Its outputs are the canvas
    `(C, C, 3)`, the candidates that are not windows `(R, c, c, 3)`, if any, and the glimpses
    `(K, s, s, 1)`.
    """
    plan = spec.crop_layout

    def graph() -> tuple[Node, ...]:
        data = fn.external_source(name="data", dtype=types.UINT8, ndim=1)
        places = fn.external_source(name="places", dtype=types.FLOAT, ndim=3, device="cpu")
        image = _decoded(data, device)
        canvas = _source_part(image, places[0], plan.canvas_px, device)
        resized = [
            _source_part(image, places[1 + row], plan.crop_px, device)
            for row in range(len(plan.resized))
        ]
        rows = {candidate: row for row, candidate in enumerate(plan.resized)}
        crops = [
            resized[rows[k]] if k in rows else canvas[box.y0 : box.y1, box.x0 : box.x1]
            for k, box in enumerate(plan.boxes)
        ]
        weight = edge_weight(plan.crop_px, spec.glimpse_size)
        colours = fn.stack(*crops, axis_name="F")
        for axis in (2, 1):
            colours = _one_pass(
                colours, axis, spec.glimpse_size, device, axes=(2, 1), edges=(weight, weight)
            )
        luma = fn.coord_transform(colours, M=list(LUMA), T=[0.5], dtype=types.FLOAT)
        gray = fn.cast(dali_math.floor(luma), dtype=types.UINT8)
        return (canvas, *([fn.stack(*resized)] if resized else []), gray)

    return graph


def _source_part(image: Node, places: Node, side_px: int, device: str) -> Node:
    """Resize a part of the source as Pillow does: across and then down, rounding in between.

    Args:
        image: `(H, W, 3)`.
        places: The part's row of `source_places`.
        side_px: Side of the square, px.
        device: `cpu` or `gpu`.
    """
    for axis in (1, 0):
        place = places[1 - axis]
        edges = [place[2], place[3]]
        if device == "gpu":
            edges = [edge.gpu() for edge in edges]
        image = _one_pass(
            image, axis, side_px, device, axes=(1, 0), edges=edges, part=(place[0], place[1])
        )
    return image


def _one_pass(
    image: Node,
    axis: int,
    side_px: int,
    device: str,
    *,
    axes: tuple[int, int],
    edges: Sequence[Node],
    part: tuple[Node, Node] | None = None,
) -> Node:
    """Resize one axis.

    Args:
        image: `(H, W, 3)`, or frames of that shape.
        axis: Axis to resize.
        side_px: Its new length, px.
        device: `cpu` or `gpu`.
        axes: Axes of width and height.
        edges: `edge_weight` at its start and its end.
        part: Start and end of the part to take, px; None takes all.
    """
    size = image.shape(dtype=types.FLOAT)
    width, height = (side_px if axis == other else size[other] for other in axes)
    region = {}
    if part is not None:  # of an image, whose axes begin with height and width
        start, stop = part
        zero = 0.0 * start
        region = {
            "roi_start": fn.stack(start, zero) if axis == 0 else fn.stack(zero, start),
            "roi_end": fn.stack(stop, size[1]) if axis == 0 else fn.stack(size[0], stop),
        }
    smooth = fn.resize(
        image,
        resize_x=width,
        resize_y=height,
        interp_type=types.INTERP_TRIANGULAR,
        antialias=True,
        dtype=types.FLOAT,
        **region,
    )
    before = (slice(None),) * axis
    first, last = image[(*before, slice(0, 1))], image[(*before, slice(-1, None))]
    shape = [1] * (axes[0] + 2)
    shape[axis] = side_px
    ends = np.eye(side_px, dtype=np.float32)
    at_start, at_end = (
        types.Constant(end.reshape(shape), device=device) * edge
        for end, edge in zip((ends[0], ends[-1]), edges, strict=True)
    )
    unpadded = smooth + at_start * (smooth - first) + at_end * (smooth - last)
    return fn.cast(unpadded + HALF_UP, dtype=types.UINT8)


def source_places(sizes: Sequence[Size], plan: CropLayout) -> list[npt.NDArray[np.float32]]:
    """Locate the canvas and the resized candidates in each image.

    Returns:
        For each image float32 `(1 + R, 2, 4)`: for the canvas and then each resized candidate,
        across and then down, the start and the end, px, and the `edge_weight` of both.
    """
    return [
        np.array(
            [_places((0, 0, *size), size, plan.canvas_px)]
            + [
                _places(plan.source_box(k, width=size[0], height=size[1]), size, plan.crop_px)
                for k in plan.resized
            ],
            np.float32,
        )
        for size in sizes
    ]


def _places(box: SourceBox, size: Size, side_px: int) -> list[list[float]]:
    """Give start, end and edge weights of a box that becomes a square, across and down."""
    places = []
    for start, stop, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        weight = edge_weight(stop - start, side_px)  # only at an edge of the image
        places.append([start, stop, weight * (start == 0), weight * (stop == length)])
    return places


def views_from(outputs: Sequence[Any], sizes: Sequence[Size], crop_px: int) -> list[Views]:
    """Copy the outputs of `view_graph` to the CPU."""
    canvases, *resized, grays = (np.asarray(out.as_cpu().as_tensor()) for out in outputs)
    none = np.empty((len(sizes), 0, 3, crop_px, crop_px), np.uint8)
    resized_RCHW = resized[0].transpose(0, 1, 4, 2, 3) if resized else none
    return [
        Views(
            canvas=canvases[number],
            resized=resized_RCHW[number],
            glimpses=grays[number].transpose(0, 3, 1, 2),
            width=width,
            height=height,
        )
        for number, (width, height) in enumerate(sizes)
    ]
