"""Prepare a build: what decides its bytes, which image goes to which shard, what is left to do."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pipeline.build.config import BuildConfig
from pipeline.common.cpus import num_usable
from pipeline.common.errors import NoRoomError
from pipeline.common.progress import Progress
from pipeline.decode import open_decoder
from pipeline.format import manifest
from pipeline.format.codecs import Codec
from pipeline.format.spec import DataSpec
from pipeline.sources.folder import open_source, spelt_out
from pipeline.write.place import FolderPlace, StorePlace
from pipeline.write.planning import (
    Planned,
    plan_shards,
    sample_bytes,
    samples_per_shard,
    select,
)
from pipeline.write.resume import Finished
from pipeline.write.worker import Task


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Which image goes to which shard.

    Attributes:
        spec: What decides the bytes of samples.
        fingerprint: Digest of the spec and of the source's listing.
        classes: Names of the class folders; a label is an index into them.
        num_sources: Number of images by split.
        shards: Every shard with its images, by split and index.
        skipped: Paths of files that are not images in train/CLASS/ or val/CLASS/, as `spelt_out`
            escapes them.
    """

    spec: DataSpec
    fingerprint: str
    classes: tuple[str, ...]
    num_sources: Mapping[str, int]
    shards: Sequence[Planned]
    skipped: tuple[str, ...]


def data_spec(config: BuildConfig) -> DataSpec:
    """Take from a config what decides the bytes of samples; the decoder adds its library."""
    recorded = {
        field.name: getattr(config, field.name)
        for field in fields(DataSpec)
        if hasattr(config, field.name)
    }
    if config.codec != "jpeg":
        recorded |= {"jpeg_quality": None, "jpeg_subsampling": None}
    return DataSpec(**recorded, codec_library=Codec(config.codec).library)


def spec_here(config: BuildConfig) -> DataSpec:
    """Give the `data_spec` with the version of the decoder that is found here.

    Raises:
        ConfigError: If the decoder is not installed, or its device is missing.
    """
    spec = data_spec(config)
    return replace(spec, decoder_library=open_decoder(spec, threads_of(config)).library)


def threads_of(config: BuildConfig) -> int:
    """Divide the CPUs among the workers' decoders; on Ray, each has one."""
    return 1 if config.engine == "ray" else max(1, num_usable() // config.workers)


def plan_source(
    config: BuildConfig, spec: DataSpec, *, scratch: Path, progress: Progress
) -> ShardPlan:
    """List the source, and assign its images to shards.

    Args:
        config: The build.
        spec: Its `spec_here`.
        scratch: File that an archive's images are appended to.
        progress: Reports bytes of an archive.

    Raises:
        SourceError: If the source cannot be used.
    """
    source = open_source(config.source, scratch=scratch, progress=progress)
    images = {
        split: select(members, seed=config.seed, limit=config.limit)
        for split, members in source.images.items()
    }
    listing = [(image.path, image.size) for members in images.values() for image in members]
    return ShardPlan(
        spec=spec,
        fingerprint=manifest.fingerprint(spec, listing),
        classes=source.classes,
        num_sources={split: len(members) for split, members in images.items()},
        shards=plan_shards(images, per_shard=samples_per_shard(spec)),
        skipped=tuple(map(spelt_out, source.skipped)),
    )


def tasks_left(
    plan: ShardPlan,
    finished: Mapping[str, Finished],
    *,
    config: BuildConfig,
    place: FolderPlace | StorePlace,
) -> list[Task]:
    """Give a task for each shard that is not finished.

    Args:
        plan: The shards to build.
        finished: Those that an earlier run finished, by name.
        config: The build.
        place: Where workers write; absolute paths, since on Ray work begins elsewhere.
    """
    num_bytes = sample_bytes(plan.spec)
    shared = (place, plan.spec, threads_of(config))
    return [
        Task(*shared, shard, images, plan.classes, len(images) * num_bytes)
        for shard, images in plan.shards
        if shard.name not in finished
    ]


def require_room(tasks: Sequence[Task], folder: Path, *, codec: str) -> None:
    """Check that the shards of tasks fit on the disk of a folder.

    Raises:
        NoRoomError: If they do not; a codec may need half of the estimate.
    """
    needed = sum(task.num_bytes for task in tasks)
    free = shutil.disk_usage(folder).free
    if free < (needed if codec == "raw" else needed // 2):
        raise NoRoomError(
            f"the shards need about {needed:,} bytes; got {free:,} free at {folder}. "
            "Free some space there, or choose a folder on another disk."
        )
