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
from pipeline.build.config import BuildConfig
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from pipeline.format import manifest as manifests
from pipeline.format.codecs import Codec
from pipeline.format.npy import decode_array
from pipeline.format.spec import CODECS, JPEG_SUBSAMPLINGS
from pipeline.pixels import Pixels

_CONTENDERS = {
    **{name: Codec(name) for name in CODECS if name not in ("raw", "jpeg")},
    **{
        f"jpeg {quality} {colours}": Codec("jpeg", quality, colours)
        for quality in (BuildConfig.jpeg_quality, 90)
        for colours in JPEG_SUBSAMPLINGS
    },
}
_DECODES = 5  # of each canvas, whose median counts; encoding takes longer, and once is enough


class CodecRow(NamedTuple):
    """One codec's figures, of one canvas or of many."""

    name: str
    kilobytes: float
    encode_ms: float
    decode_ms: float
    mean_off: float
    max_off: int


def measure(shards: Path, *, images: int, progress: Progress = SILENT) -> list[CodecRow]:
    """Give every codec each canvas in turn.

    Args:
        shards: Folder of raw canvases, or one that holds it.
        images: Canvases to take, in the order of the shards.
        progress: Reports canvases measured.

    Raises:
        ConfigError: If there are no such shards.
    """
    trials: dict[str, list[CodecRow]] = {name: [] for name in _CONTENDERS}
    for number, canvas in enumerate(islice(_raw_canvases(shards), images)):
        progress.update("measuring", number, images)
        for name, codec in _CONTENDERS.items():
            trials[name].append(_try(name, codec, canvas))
    progress.update("measuring", images, images)
    return [_summary(name, of_codec) for name, of_codec in trials.items()]


def _try(name: str, codec: Codec, canvas: Pixels) -> CodecRow:
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
    return CodecRow(
        name=name,
        kilobytes=len(data) / 1000,
        encode_ms=1000 * encode_s,
        decode_ms=1000 * statistics.median(decode_s),
        mean_off=float(off.mean()),
        max_off=int(off.max()),
    )


def _summary(name: str, trials: list[CodecRow]) -> CodecRow:
    return CodecRow(
        name=name,
        kilobytes=statistics.fmean(trial.kilobytes for trial in trials),
        encode_ms=statistics.median(trial.encode_ms for trial in trials),
        decode_ms=statistics.median(trial.decode_ms for trial in trials),
        mean_off=statistics.fmean(trial.mean_off for trial in trials),
        max_off=max(trial.max_off for trial in trials),
    )


def _raw_canvases(shards: Path) -> Iterator[Pixels]:
    folder = manifests.find(shards)
    manifest = manifests.load(folder)
    suffix = Codec().canvas_suffix
    if suffix not in manifest.suffixes():
        raise ConfigError(
            f"SHARDS must hold raw canvases; got --layout {manifest.spec.layout} --codec "
            f"{manifest.spec.codec} in {folder}. Build some with --codec raw --limit 500."
        )
    for shard in manifest.shards:
        with tarfile.open(folder / shard.name, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(f".{suffix}") else None
                if file:
                    yield decode_array(file.read(), member.name)
