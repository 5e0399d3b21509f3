"""`srp-data bench scale`: what a thousand and a million samples cost the reader.

The larger splits are some shards many times over, under names of their own that link to the same
files, so that the disk need not hold hundreds of gigabytes; their manifests are whole.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.reader import ShardReader
from pipeline.read.sampler import training_batches

SPLIT = "train"
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one size cost, in a process of its own.

    Attributes:
        num_samples: Of the split.
        num_shards: Of the split.
        start_s: From imported modules to the first batch, s; reading the manifest is most of it.
        memory_mib: Of the process's own, after the epoch's order and all batches, MiB.
        rate: Canvases per second, each checked, since each is read for the first time.
    """

    num_samples: int
    num_shards: int
    start_s: float
    memory_mib: float
    rate: float


def bench_scale(
    shards: Path, *, sizes: tuple[int, ...], workers: int, rounds: int, progress: Progress
) -> list[Cost]:
    """Measure splits of these sizes, medians over fresh processes.

    Raises:
        ConfigError: If the shards hold no canvases or no sample.
    """
    folder = manifests.find(shards)
    known = manifests.load(folder)
    if known.spec.layout != "canvas" or not known.num_samples(SPLIT):
        raise ConfigError(
            "a bench of scale needs shards with --layout canvas and samples in train; got "
            f"--layout {known.spec.layout} and {known.num_samples(SPLIT)} in {folder}."
        )
    costs = []
    for number, size in enumerate(sizes):
        progress.update("measuring", number, len(sizes))
        with TemporaryDirectory(prefix="srp-scale-") as scratch:
            _multiply(folder, known, Path(scratch), size)
            costs.append(_median([_measure_apart(Path(scratch), workers) for _ in range(rounds)]))
    progress.update("measuring", len(sizes), len(sizes))
    return costs


def _multiply(folder: Path, known: Manifest, out: Path, size: int) -> None:
    """Write a folder of at least as many samples as asked for."""
    real = [shard for shard in known.of_split(SPLIT) if len(shard.samples)]
    shards: list[ShardEntry] = []
    count = 0
    while count < size:
        shard = real[len(shards) % len(real)]
        copied = replace(shard, name=f"{SPLIT}-{len(shards):06d}.tar")
        (out / copied.name).symlink_to((folder / shard.name).resolve())
        shards.append(copied)
        count += len(shard.samples)
    whole = replace(known, num_sources={SPLIT: count}, rejects=(), shards=tuple(shards))
    (out / manifests.FILE_NAME).write_text(manifests.to_json(whole), encoding="utf-8")


def _measure_apart(folder: Path, workers: int) -> Cost:
    command = [sys.executable, "-P", "-m", "pipeline.bench.scale", str(folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        *_, reason = ["it ended in silence", *done.stderr.strip().splitlines()]
        raise ConfigError(
            f"every --size must be readable here; got {reason!r} from the larger ones. "
            "Leave out the largest."
        )
    return Cost(**json.loads(done.stdout))


def _median(costs: list[Cost]) -> Cost:
    return replace(
        costs[0],
        start_s=median(cost.start_s for cost in costs),
        memory_mib=median(cost.memory_mib for cost in costs),
        rate=median(cost.rate for cost in costs),
    )


def measure(folder: Path, workers: int, *, num_batches: int = 200) -> Cost:
    """Measure one folder in this process."""
    start = time.perf_counter()
    known = manifests.load(folder)
    reader = ShardReader(folder, known, known.of_split(SPLIT))
    content = BatchSpec(candidates=(0,), glimpse_px=None, crops=False)
    batch_size = min(BATCH, len(reader))
    order = training_batches(len(reader), batch_size=batch_size, seed=0, epoch=0)[:num_batches]
    batches = BatchLoader(reader, content, workers=workers).batches(order)
    next(batches)
    first = time.perf_counter()
    num_read = sum(len(batch.labels_B) for batch in batches)
    return Cost(
        num_samples=len(reader),
        num_shards=len(known.shards),
        start_s=first - start,
        memory_mib=_own_memory_mib(),
        rate=num_read / (time.perf_counter() - first),
    )


def _own_memory_mib() -> float:
    """Tell what the process holds for itself; mapped shards belong to the system's cache."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(kib) / 1024


def to_line(cost: Cost) -> str:
    """Lay a cost out for programs."""
    return json.dumps(asdict(cost))


if __name__ == "__main__":
    sys.stdout.write(to_line(measure(Path(sys.argv[1]), int(sys.argv[2]))))
