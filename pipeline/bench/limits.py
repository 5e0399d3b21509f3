"""What breaks first as a data set grows: each rule compares what is needed with what there is.

The constants were measured here; `bench/README.md` says how.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.bench.config import PlanBenchConfig
from pipeline.format.manifest import INLINE_SAMPLES

INLINE_BYTES = 54  # of the JSON of a sample's index
INDEX_MEMORY = 63  # bytes of a sample's index in memory
READER_MEMORY = 90  # the same in a reader by index, with its own columns and an epoch's order
INLINE_S = 0.66e-6  # to read a sample's index
ROW_BYTES = 257  # of the JSON of a shard whose index is a file of its own
ROW_MEMORY = 820  # bytes of that row in memory
ROW_S = 8e-6  # to read that row, up to the first sample of a stream
LISTED_MEMORY = 730  # bytes of an image that a build has listed

START_S = 2.0  # in which a folder should be open
PATIENCE_H = 1.0  # for which a build may list its source
BUILD_H = 72.0
NUM_CORES = 64
NUM_RANKS = 8  # processes of a machine with as many GPUs; each opens the folder
NUM_MAPS = 65_530  # memory maps of a process: Linux, vm.max_map_count by default
_GIB = 2**30
_NEVER = math.inf


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a data set of some size takes in one layout and codec.

    Attributes:
        num_images: Images of all splits.
        num_bytes: Of its shards.
        num_shards: Shards.
        core_hours: To build it.
        num_gets: Requests of one epoch.
        epoch_cost: Of reading one epoch out of the store's region, $.
        gbit_s_8: That eight GPUs read.
        read_cores_8: Cores that read and decode for eight GPUs.
    """

    num_images: int
    num_bytes: float
    num_shards: int
    core_hours: float
    num_gets: int
    epoch_cost: float
    gbit_s_8: float
    read_cores_8: float

    @property
    def inline_bytes(self) -> int:
        """Bytes of a manifest that holds every index."""
        return self.num_images * INLINE_BYTES + self.num_shards * ROW_BYTES

    @property
    def inline_memory(self) -> int:
        """Bytes that it takes in a process."""
        return self.num_images * INDEX_MEMORY + self.num_shards * ROW_MEMORY

    @property
    def inline_start_s(self) -> float:
        """Seconds to open it."""
        return self.num_images * INLINE_S + self.num_shards * ROW_S

    @property
    def sharded_bytes(self) -> int:
        """Bytes of a manifest whose shards have an index file each."""
        return self.num_shards * ROW_BYTES

    @property
    def sharded_memory(self) -> int:
        """Bytes that it takes in a process."""
        return self.num_shards * ROW_MEMORY

    @property
    def sharded_start_s(self) -> float:
        """Seconds to open it."""
        return self.num_shards * ROW_S

    @property
    def reader_memory(self) -> int:
        """Bytes that a reader by index and an epoch's order take in a process."""
        return self.num_images * READER_MEMORY + self.num_shards * ROW_MEMORY


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One thing that can run out.

    Attributes:
        what: What is needed.
        needed: How much of it.
        limit: How much there is.
        unit: Of both.
        from_images: Images from which there is too little; infinite if never.
        fix: What helps.
    """

    what: str
    needed: float
    limit: float
    unit: str
    from_images: float
    fix: str

    @property
    def is_over(self) -> bool:
        """Whether there is too little."""
        return self.needed > self.limit


def limits_of(config: PlanBenchConfig, demand: Demand) -> list[Limit]:
    """Compare a data set with every limit; what eight GPUs need does not grow with the images."""
    return [
        *_of_building(config, demand),
        *_of_opening(config, demand),
        *_of_reading(config, demand),
        *_of_moving(config, demand),
    ]


def _of_building(config: PlanBenchConfig, demand: Demand) -> Iterator[Limit]:
    yield _linear(
        demand,
        "hours in which a build lists its source",
        demand.num_images / config.list_rate / 3600,
        PATIENCE_H,
        "h",
        "several builds, each of some class folders",
    )
    yield _linear(
        demand,
        "memory of a build's list and indexes",
        demand.num_images * (LISTED_MEMORY + INDEX_MEMORY) / _GIB,
        config.ram_gib,
        "GiB",
        "several builds",
    )
    yield _linear(
        demand, f"hours to build on {NUM_CORES} cores", demand.core_hours / NUM_CORES, BUILD_H, "h",
        "more machines, a codec that encodes faster, or a GPU that decodes",
    )  # fmt: skip


def _of_opening(config: PlanBenchConfig, demand: Demand) -> Iterator[Limit]:
    is_inline = demand.num_images <= INLINE_SAMPLES
    start_s = demand.inline_start_s if is_inline else demand.sharded_start_s
    memory = demand.inline_memory if is_inline else demand.sharded_memory
    yield _linear(
        demand, "seconds to open the folder", start_s, START_S, "s", "a larger --shard-mib"
    )
    yield _linear(
        demand, f"memory of the manifest in {NUM_RANKS} processes", NUM_RANKS * memory / _GIB,
        config.ram_gib, "GiB", "a larger --shard-mib",
    )  # fmt: skip


def _of_reading(config: PlanBenchConfig, demand: Demand) -> Iterator[Limit]:
    yield _linear(
        demand,
        f"memory to read by index in {NUM_RANKS} processes",
        NUM_RANKS * demand.reader_memory / _GIB,
        config.ram_gib,
        "GiB",
        "read a stream (SampleStream)",
    )
    yield _linear(
        demand,
        "memory maps to read by index",
        demand.num_shards,
        NUM_MAPS,
        "shards",
        "a larger --shard-mib, or a stream",
    )
    yield Limit(
        what="cores to read for 8 GPUs",
        needed=demand.read_cores_8,
        limit=NUM_CORES,
        unit="cores",
        from_images=1 if demand.read_cores_8 > NUM_CORES else _NEVER,
        fix="--codec raw, zstd or jpeg, or fewer GPUs a machine",
    )


def _of_moving(config: PlanBenchConfig, demand: Demand) -> Iterator[Limit]:
    disk = _linear(
        demand, "disk of a machine", demand.num_bytes / _GIB, config.disk_gib, "GiB",
        "read from an address, with --cache-mib or as a stream",
    )  # fmt: skip
    yield disk
    yield Limit(  # what fits the disk crosses the network once
        what="network for 8 GPUs, each epoch",
        needed=demand.gbit_s_8 if disk.is_over else 0.0,
        limit=config.net_gbit,
        unit="Gbit/s",
        from_images=disk.from_images if demand.gbit_s_8 > config.net_gbit else _NEVER,
        fix="another --codec, fewer GPUs a machine, or a larger disk",
    )
    yield _linear(
        demand, "cost of reading an epoch out of the region", demand.epoch_cost,
        config.epoch_budget, "$", "train in the store's region, or keep the shards on disks",
    )  # fmt: skip


def _linear(demand: Demand, what: str, needed: float, limit: float, unit: str, fix: str) -> Limit:
    """Make the limit of what grows with the images."""
    from_images = demand.num_images * limit / needed if needed else _NEVER
    return Limit(what=what, needed=needed, limit=limit, unit=unit, from_images=from_images, fix=fix)
