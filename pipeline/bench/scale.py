"""`srp-data bench scale`: what a thousand and a hundred million samples cost a reader.

The larger splits are some shards many times over, under names of their own that link to the same
files, so the disk need not hold terabytes; their manifests are whole.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from pipeline.bench.config import ScaleBenchConfig
from pipeline.command.results import Row, Turn, with_medians
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.index_file import (
    IndexFiles,
    LocalFiles,
    StoredIndex,
    digest_of,
    encode_index,
    index_name,
    row_of,
)
from pipeline.format.manifest import Manifest
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.sampler import training_batches
from pipeline.stream.folder import ShardFolder
from pipeline.stream.stream import SampleStream

SPLIT = "train"
BATCH = 64
NUM_BATCHES = 200
NUM_STREAMED = 2000  # samples


def bench_scale(config: ScaleBenchConfig, *, progress: Progress = SILENT) -> list[Row]:
    """Measure splits of some sizes, each several times in a fresh process.

    Batches are read by index from splits whose manifest holds every index; a stream is read from
    all.

    Raises:
        ConfigError: If the shards hold no canvases or no sample.
    """
    opened = ShardFolder.open(config.shards)
    known = opened.manifest
    if known.spec.layout != "canvas" or not known.num_samples(SPLIT):
        raise ConfigError(
            "a bench of scale needs shards with --layout canvas and samples in train; got "
            f"--layout {known.spec.layout} and {known.num_samples(SPLIT)} in {opened.place}."
        )
    rows: list[Row] = []
    for number, size in enumerate(config.sizes):
        progress.update("measuring", number, len(config.sizes))
        with TemporaryDirectory(prefix="srp-scale-") as scratch:
            rows += _measure_size(opened, Path(scratch), size, config)
    progress.update("measuring", len(config.sizes), len(config.sizes))
    return rows


def _measure_size(
    opened: ShardFolder, out: Path, size: int, config: ScaleBenchConfig
) -> Iterator[Row]:
    split = _multiply(opened, out, size)
    count = split.num_samples(SPLIT)
    for how in ("stream",) if split.has_index_files else ("batches", "stream"):
        labels = {"samples": f"{count:,}", "shards": f"{len(split.shards):,}", "read as": how}
        turns = [_measure_apart(out, how, config.workers) for _ in range(config.rounds)]
        yield with_medians(Row(name=f"{count:,}, {how}", labels=labels), turns)


def _multiply(opened: ShardFolder, out: Path, size: int) -> Manifest:
    """Write a folder of at least as many samples as asked for."""
    real = [shard for shard in opened.manifest.of_split(SPLIT) if len(shard.samples)]
    shards: list[ShardEntry] = []
    count = 0
    while count < size:
        number = len(shards)
        shard = real[number % len(real)]
        shards.append(replace(shard, name=f"{SPLIT}-{number:06d}.tar"))
        (out / shards[-1].name).symlink_to((Path(opened.place) / shard.name).resolve())
        count += len(shard.samples)
    whole = replace(opened.manifest, num_sources={SPLIT: count}, rejects=(), shards=tuple(shards))
    if whole.has_index_files:
        whole = _with_index_files(whole, out, len(real))
    (out / manifests.FILE_NAME).write_bytes(manifests.encode_manifest(whole))
    return whole


def _with_index_files(whole: Manifest, out: Path, num_real: int) -> Manifest:
    """Give each shard an index file; those of equal shards are links to one."""
    files = IndexFiles(LocalFiles(folder=out), suffixes=whole.suffixes(), num_classes=0)
    stored = []
    for number, shard in enumerate(whole.shards[:num_real]):
        index = encode_index(shard.samples.in_memory())
        (out / f"{number}.json").write_bytes(index)
        stored.append(StoredIndex(row_of(shard, digest_of(index)), files))
    for number, shard in enumerate(whole.shards):
        (out / index_name(shard.name)).symlink_to(f"{number % num_real}.json")
    shards = (replace(each, samples=stored[i % num_real]) for i, each in enumerate(whole.shards))
    return replace(whole, shards=tuple(shards))


def _measure_apart(folder: Path, how: str, workers: int) -> Turn:
    arguments = (str(folder), how, str(workers))
    command = [sys.executable, "-P", "-m", "pipeline.bench.scale", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        *_, reason = ["it printed nothing", *done.stderr.strip().splitlines()]
        raise ConfigError(
            f"every --size must be readable here; got {reason!r} from the larger ones. "
            "Leave out the largest."
        )
    return msgspec.json.decode(done.stdout, type=Turn)


def measure_batches(folder: Path, workers: int) -> Turn:
    """Measure batches that are read by index from a folder, in this process.

    Returns:
        Canvases per second, each checked, since each is read for the first time; seconds from
        imported modules to the first batch, mostly for the manifest; and the process's own memory
        after the epoch's order and all batches.
    """
    start = time.perf_counter()
    reader = ShardFolder.open(folder).reader(SPLIT)
    spec = BatchSpec(candidates=(0,), glimpse_px=None, crops=False)
    batch_size = min(BATCH, len(reader))
    order = training_batches(len(reader), batch_size=batch_size, seed=0, epoch=0)[:NUM_BATCHES]
    batches = BatchLoader(reader, spec, workers=workers).batches(order)
    next(batches)
    first = time.perf_counter()
    num_read = sum(len(batch.labels_B) for batch in batches)
    return _turn(num_read, start=start, first=first)


def measure_stream(folder: Path) -> Turn:
    """Measure a stream of a folder whose shards are shuffled, in this process.

    Returns:
        As `measure_batches`, up to the first sample in place of the first batch.
    """
    start = time.perf_counter()
    opened = ShardFolder.open(folder)
    stream = SampleStream(opened.store, SPLIT, manifest=opened.manifest, seed=0)
    samples = stream.samples()
    next(samples)
    first = time.perf_counter()
    num_read = sum(1 for _ in islice(samples, NUM_STREAMED))
    return _turn(num_read, start=start, first=first)


def _turn(num_read: int, *, start: float, first: float) -> Turn:
    rate = num_read / (time.perf_counter() - first)
    return Turn(rate, {"start, s": first - start, "memory, MiB": _own_memory_mib()})


def _own_memory_mib() -> float:
    """Measure what the process holds for itself; mapped shards belong to the system's cache."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(kib) / 1024


def _main(folder: str, how: str, workers: str) -> None:
    turn = (
        measure_stream(Path(folder)) if how == "stream"
        else measure_batches(Path(folder), int(workers))
    )  # fmt: skip
    sys.stdout.write(msgspec.json.encode(turn).decode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
