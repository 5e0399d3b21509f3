"""`srp-data bench build`: every decoder, the predecessor, and the limits.

All read the same images from memory, on one thread, except DALI, which decodes a batch ahead;
builds read them from files and write shards. The predecessor resized and cropped each image twice,
once for the originals and once for the glimpses. The limits do less than any build must: decode,
decode with one resize, and the same with the canvas alone hashed, written and synced.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.bench.config import BenchConfig
from pipeline.bench.other_env import other_contenders
from pipeline.build.build import build_shards
from pipeline.build.config import BuildConfig
from pipeline.build.prepare import data_spec
from pipeline.command import results
from pipeline.command.results import Contender, Difference, Row, Turn
from pipeline.common.errors import ConfigError, ImageError, SourceError
from pipeline.common.progress import Progress
from pipeline.decode import open_decoder
from pipeline.decode.pillow import pillow_name
from pipeline.decode.rules import FORMATS, Decoder, Views, is_plain_jpeg, opened
from pipeline.format.cutting import cut
from pipeline.format.npy import encode_array
from pipeline.format.sample import PlannedShard
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels
from pipeline.pixels.resize import gray, is_exact, resize_exactly
from pipeline.sources.folder import open_source
from pipeline.write.planning import select
from pipeline.write.shard_writer import EncodedSample, write_shard

DECODE = "libjpeg-turbo: decode"
DECODE_RESIZE = "libjpeg-turbo: decode, one resize"
WRITTEN = "libjpeg-turbo: decode, one resize, written"  # hashed and synced, too
PILLOW_RESIZE = f"{pillow_name()}: decode, one resize"
PREDECESSOR = "torchvision as the predecessor ran it"
DECODERS = (("pillow", "cpu"), ("dali", "cpu"), ("dali", "gpu"))  # and their devices
COMPARED = 100  # images whose pixels are compared with the reference

Measured = tuple[list[Row], dict[str, Any]]


class _Images(NamedTuple):
    """The images, in memory and as a source that can be built."""

    files: list[bytes]
    tree: Path


def bench_build(config: BenchConfig, *, progress: Progress) -> Measured:
    """Measure everything that can build shards here.

    Returns:
        The rows, the predecessor's first, and the setting they were measured in.

    Raises:
        ConfigError: If a size cannot work, or `--beside` has no srp.
        SourceError: If the source cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="srp-bench-") as scratch:
        spec = data_spec(config.build(source=config.source, out=Path(scratch)))
        images = _gather(config, spec, Path(scratch), progress)
        contenders = [
            *_baselines(images.files, spec, Path(scratch)),
            *_decoders(config, images, spec, Path(scratch)),
        ]
        if config.beside:
            known = {contender.row.name for contender in contenders}
            contenders += other_contenders(config, images.tree, config.beside, known)
        first = contenders[0].row.name
        compared = [
            replace(contender, against=(first, *contender.against)) for contender in contenders
        ]
        rows = results.interleave(compared, rounds=config.rounds, progress=progress)
    return rows, _setting(config, images)


def _setting(config: BenchConfig, images: _Images) -> dict[str, Any]:
    return {
        "source": config.source.resolve().name,
        "images": len(images.files),
        "mean_bytes": round(sum(map(len, images.files)) / len(images.files)),
        "rounds": config.rounds,
        "canvas_size": config.canvas_size,
        "crop_size": config.crop_size,
        "glimpse_size": config.glimpse_size,
    }


def _gather(config: BenchConfig, spec: DataSpec, scratch: Path, progress: Progress) -> _Images:
    """Copy some usable images to a folder of their own, one of each class into `val/`."""
    source = open_source(config.source, scratch=scratch / "archive", progress=progress)
    both = [image for members in source.images.values() for image in members]
    tree = scratch / "images"
    files: list[bytes] = []
    of_class: dict[str, int] = {}
    for image in select(both, seed=config.seed, limit=None):
        if len(files) == config.images:
            break
        data = image.read()
        if not _is_for_all(data, spec):
            continue
        number = of_class.get(image.class_name, 0)
        of_class[image.class_name] = number + 1
        folder = tree / ("train" if number else "val") / image.class_name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(data)
        files.append(data)
    if min(of_class.values(), default=0) < 2:
        raise SourceError(
            f"a bench must find at least two upright RGB JPEGs in each class; got {len(files)} in "
            f"{len(of_class)} classes of {config.source}. Raise --images, or name another source."
        )
    (scratch / "archive").unlink(missing_ok=True)
    return _Images(files, tree)


def _is_for_all(data: bytes, spec: DataSpec) -> bool:
    """Whether all contenders see the same picture; a file that one lacks would favour it."""
    try:
        with opened(data, max_pixels=spec.max_pixels) as image:
            is_plain = is_plain_jpeg(image, spec) and image.mode == "RGB"
            return is_plain and bool(simplejpeg.decode_jpeg(data, "RGB").size)
    except ImageError:
        return False


def _turns(name: str, work: Callable[[bytes], object], files: Sequence[bytes]) -> Contender:
    """Time one piece of work on each file."""

    def measure() -> Turn:
        start = time.perf_counter()
        for data in files:
            work(data)
        return Turn(len(files) / (time.perf_counter() - start))

    return Contender(row=Row(name=name), measure=measure)


def _baselines(files: Sequence[bytes], spec: DataSpec, scratch: Path) -> Iterator[Contender]:
    """Measure the predecessor, and what no build of the same library can beat."""
    side = spec.canvas_size

    def in_pillow(data: bytes) -> object:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)

    def decode(data: bytes) -> Any:
        return simplejpeg.decode_jpeg(data, "RGB")

    def write() -> Turn:
        canvases = (encode_array(resize_exactly(decode(data), side)) for data in files)
        samples = (EncodedSample(f"{n}", 0, {"npy": canvas}) for n, canvas in enumerate(canvases))
        shard = PlannedShard(split="limit", index=0, keys=())
        start = time.perf_counter()
        write_shard(scratch, shard, samples, suffixes=("npy",))
        rate = len(files) / (time.perf_counter() - start)
        (scratch / shard.name).unlink()
        return Turn(rate)

    if find_spec("torchvision"):
        from pipeline.bench.predecessor import make_transforms

        yield _turns(PREDECESSOR, make_transforms(spec), files)
    yield _turns(DECODE, decode, files)
    yield _turns(DECODE_RESIZE, lambda data: resize_exactly(decode(data), side), files)
    yield Contender(row=Row(name=WRITTEN), measure=write, against=(DECODE_RESIZE,))
    yield _turns(PILLOW_RESIZE, in_pillow, files)


def _decoders(
    config: BenchConfig, images: _Images, spec: DataSpec, scratch: Path
) -> Iterator[Contender]:
    """Measure each decoder that is here: views alone, and whole builds."""
    reference = [_reference(data, spec) for data in images.files[:COMPARED]]
    for name, device in DECODERS:
        spec = replace(spec, decoder=name, device=device)
        try:
            decoder = open_decoder(spec)
        except ConfigError:  # not installed, or without its device
            continue
        yield Contender(
            row=Row(
                name=f"{_called(spec)}: views",
                differences=_differences(reference, _views(decoder, images.files[:COMPARED])),
            ),
            measure=partial(_decode_all, decoder, images.files),
            against=(DECODE_RESIZE if is_exact() else PILLOW_RESIZE,),
        )
        yield from _builds(config, spec, images, scratch)


def _views(decoder: Decoder, files: Sequence[bytes]) -> Iterator[Views | ImageError]:
    return (views for _, views in decoder.decode(enumerate(files)))


def _decode_all(decoder: Decoder, files: Sequence[bytes]) -> Turn:
    start = time.perf_counter()
    num_views = sum(isinstance(views, Views) for views in _views(decoder, files))
    return Turn(num_views / (time.perf_counter() - start))


def _builds(
    config: BenchConfig, spec: DataSpec, images: _Images, scratch: Path
) -> Iterator[Contender]:
    """Measure whole builds, with one worker and with `--workers`."""

    def measure(workers: int) -> Turn:
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            options = {"decoder": spec.decoder, "device": spec.device, "workers": workers}
            task = config.build(
                source=images.tree,
                out=Path(out),
                shard_mib=_shard_mib(config, len(images.files)),
                **options,
            )
            seen = _FirstImage()
            start = time.perf_counter()
            build_shards(task, progress=seen)
            seconds = time.perf_counter() - start
            first_s = (seen.at_s or start + seconds) - start
            return Turn(len(images.files) / seconds, {"first image, s": first_s})

    named = f"{_called(spec)}: build, workers "
    for workers in sorted({1, config.workers}):
        yield Contender(
            row=Row(name=f"{named}{workers}"),
            measure=partial(measure, workers),
            against=(f"{named}1",) if workers > 1 else (WRITTEN, PILLOW_RESIZE),
        )


class _FirstImage(Progress):
    """Notes when a build shows that its first images are finished, within a tenth of a second."""

    at_s: float | None = None

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        if stage == "building shards" and done and self.at_s is None:
            self.at_s = time.perf_counter()


def _shard_mib(config: BenchConfig, num_images: int) -> int:
    """Give each worker two equal shards, so that none waits for another at the end."""
    sample_bytes = 3 * config.canvas_size**2 + 5 * config.glimpse_size**2
    in_one = num_images * sample_bytes // (2 * config.workers)
    return min(max(1, in_one >> 20), BuildConfig.shard_mib)


def _called(spec: DataSpec) -> str:
    """Name a decoder in a few words; the setting holds its versions."""
    package = pillow_name().partition(" ")[0] if spec.decoder == "pillow" else spec.decoder
    return f"{package} on the GPU" if spec.device == "gpu" else package


def _reference(data: bytes, spec: DataSpec) -> tuple[Pixels, Pixels]:
    """Make canvas and glimpses as Pillow 13 does, whatever Pillow is installed."""
    canvas = resize_exactly(simplejpeg.decode_jpeg(data, "RGB"), spec.canvas_size)
    crops = (cut(canvas, box) for box in spec.crop_layout.boxes)
    small = [gray(resize_exactly(crop, spec.glimpse_size)) for crop in crops]
    return canvas, np.stack(small)[:, None]


def _differences(
    reference: Sequence[tuple[Pixels, Pixels]], found: Iterable[Views | ImageError]
) -> dict[str, Difference]:
    pairs = [
        (expected, (views.canvas, views.glimpses))
        for expected, views in zip(reference, found, strict=True)
        if isinstance(views, Views)
    ]
    if not pairs:
        return {}
    return {
        what: results.difference((ours[part], theirs[part]) for theirs, ours in pairs)
        for part, what in enumerate(("canvas", "glimpses"))
    }
