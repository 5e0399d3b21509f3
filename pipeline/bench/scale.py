"""`srp-data bench scale`: what a thousand and a million samples cost the reader.

The larger splits are some shards many times over, under names of their own that link to the same
files, so the disk need not hold hundreds of gigabytes; their manifests are whole.
"""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from pipeline.bench.config import ScaleBenchConfig
from pipeline.command.results import Row, Turn, with_medians
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.sampler import training_batches
from pipeline.stream.folder import ShardFolder

SPLIT = "train"
BATCH = 64


def bench_scale(config: ScaleBenchConfig, *, progress: Progress = SILENT) -> list[Row]:
    """Measure splits of some sizes, each several times in a fresh process.

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
    rows = []
    for number, size in enumerate(config.sizes):
        progress.update("measuring", number, len(config.sizes))
        with TemporaryDirectory(prefix="srp-scale-") as scratch:
            row = _multiply(opened, Path(scratch), size)
            turns = [_measure_apart(Path(scratch), config.workers) for _ in range(config.rounds)]
            rows.append(with_medians(row, turns))
    progress.update("measuring", len(config.sizes), len(config.sizes))
    return rows


def _multiply(opened: ShardFolder, out: Path, size: int) -> Row:
    """Write a folder of at least as many samples as asked for, and give its row."""
    real = [shard for shard in opened.manifest.of_split(SPLIT) if len(shard.samples)]
    shards: list[ShardEntry] = []
    count = 0
    while count < size:
        shard = real[len(shards) % len(real)]
        copied = replace(shard, name=f"{SPLIT}-{len(shards):06d}.tar")
        (out / copied.name).symlink_to((Path(opened.place) / shard.name).resolve())
        shards.append(copied)
        count += len(shard.samples)
    whole = replace(opened.manifest, num_sources={SPLIT: count}, rejects=(), shards=tuple(shards))
    (out / manifests.FILE_NAME).write_bytes(manifests.encode_manifest(whole))
    return Row(name=f"{count:,}", labels={"samples": f"{count:,}", "shards": f"{len(shards):,}"})


def _measure_apart(folder: Path, workers: int) -> Turn:
    command = [sys.executable, "-P", "-m", "pipeline.bench.scale", str(folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        *_, reason = ["it printed nothing", *done.stderr.strip().splitlines()]
        raise ConfigError(
            f"every --size must be readable here; got {reason!r} from the larger ones. "
            "Leave out the largest."
        )
    return msgspec.json.decode(done.stdout, type=Turn)


def measure(folder: Path, workers: int, *, num_batches: int = 200) -> Turn:
    """Measure one folder in this process.

    Returns:
        Canvases per second, each checked, since each is read for the first time; seconds from
        imported modules to the first batch, mostly for the manifest; and the process's own memory
        after the epoch's order and all batches.
    """
    start = time.perf_counter()
    reader = ShardFolder.open(folder).reader(SPLIT)
    spec = BatchSpec(candidates=(0,), glimpse_px=None, crops=False)
    batch_size = min(BATCH, len(reader))
    order = training_batches(len(reader), batch_size=batch_size, seed=0, epoch=0)[:num_batches]
    batches = BatchLoader(reader, spec, workers=workers).batches(order)
    next(batches)
    first = time.perf_counter()
    num_read = sum(len(batch.labels_B) for batch in batches)
    return Turn(
        num_read / (time.perf_counter() - first),
        {"start, s": first - start, "memory, MiB": _own_memory_mib()},
    )


def _own_memory_mib() -> float:
    """Measure what the process holds for itself; mapped shards belong to the system's cache."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(kib) / 1024


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(measure(Path(sys.argv[1]), int(sys.argv[2]))).decode())
