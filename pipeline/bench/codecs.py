"""Measure what each codec makes of some canvases: bytes, times, differences."""

import statistics
import tarfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pipeline.pixels.kernels  # noqa: F401 - so that the first canvas is read as the thousandth is
from pipeline.bench.config import CodecBenchConfig
from pipeline.build.config import BuildConfig
from pipeline.command.results import Row
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from pipeline.format.codecs import Codec
from pipeline.format.npy import decode_array
from pipeline.format.spec import CODECS, JPEG_SUBSAMPLINGS
from pipeline.pixels import Pixels
from pipeline.stream.folder import ShardFolder

_CONTENDERS = {
    **{name: Codec(name) for name in CODECS if name not in ("raw", "jpeg")},
    **{
        f"jpeg {quality} {colours}": Codec("jpeg", quality, colours)
        for quality in (BuildConfig.jpeg_quality, 90)
        for colours in JPEG_SUBSAMPLINGS
    },
}
_DECODES = 5  # of each canvas, whose median counts; encoding takes longer, and once is enough


class _Trial(NamedTuple):
    """One codec on one canvas."""

    num_bytes: int
    encode_s: float
    decode_s: float
    mean_off: float
    max_off: int


def bench_codecs(config: CodecBenchConfig, *, progress: Progress = SILENT) -> list[Row]:
    """Give every codec each canvas in turn, in the order of the shards.

    Raises:
        ConfigError: If there are no raw canvases.
    """
    trials: dict[str, list[_Trial]] = {name: [] for name in _CONTENDERS}
    for number, canvas in enumerate(islice(_raw_canvases(config.shards), config.images)):
        progress.update("measuring", number, config.images)
        for name, codec in _CONTENDERS.items():
            trials[name].append(_try(codec, canvas))
    progress.update("measuring", config.images, config.images)
    return [_row(name, of_codec) for name, of_codec in trials.items()]


def _try(codec: Codec, canvas: Pixels) -> _Trial:
    start = time.perf_counter()
    (data,) = codec.encode(canvas)
    encode_s = time.perf_counter() - start
    out = np.empty_like(canvas)
    decode_s = []
    for _ in range(_DECODES):
        start = time.perf_counter()
        codec.decode_into(data, out)
        decode_s.append(time.perf_counter() - start)
    off = np.abs(out.astype(np.int16) - canvas)
    decode_median_s = statistics.median(decode_s)
    return _Trial(len(data), encode_s, decode_median_s, float(off.mean()), int(off.max()))


def _row(name: str, trials: list[_Trial]) -> Row:
    num_bytes, encode_s, decode_s, mean_off, max_off = zip(*trials, strict=True)
    return Row(
        name=name,
        labels={"codec": name},
        figures={
            "kB": statistics.fmean(num_bytes) / 1000,
            "encode, ms": 1000 * statistics.median(encode_s),
            "decode, ms": 1000 * statistics.median(decode_s),
            "off: mean": statistics.fmean(mean_off),
            "off: max": max(max_off),
        },
    )


def _raw_canvases(shards: Path) -> Iterator[Pixels]:
    opened = ShardFolder.open(shards)
    manifest = opened.manifest
    suffix = Codec().canvas_suffix
    if suffix not in manifest.suffixes():
        raise ConfigError(
            f"SHARDS must hold raw canvases; got --layout {manifest.spec.layout} --codec "
            f"{manifest.spec.codec} in {opened.place}. Build some with --codec raw --limit 500."
        )
    for shard in manifest.shards:
        with tarfile.open(Path(opened.place) / shard.name, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(f".{suffix}") else None
                if file:
                    yield decode_array(file.read(), member.name)
