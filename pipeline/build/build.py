"""READ FIRST: from a folder of images to a folder of shards.

Prepare: list the source, plan which image goes to which shard, find finished shards. Run: workers
write the others. Publish: name the rejects, move shards into place, write the manifest last.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pipeline.build import worker_pool
from pipeline.build.config import BuildConfig
from pipeline.build.planning import plan_shards, sample_bytes, samples_per_shard, select
from pipeline.build.publish import check_rejects, publish
from pipeline.build.resume import (
    SCRATCH_NAME,
    Finished,
    finished_before,
    open_records,
    open_state,
    refuse_other_build,
    shards_folder,
)
from pipeline.build.worker import Task, write_one
from pipeline.common.cpus import num_usable
from pipeline.common.errors import NoRoomError, VerificationError
from pipeline.common.progress import SILENT, Progress
from pipeline.decode import open_decoder
from pipeline.format import manifest
from pipeline.format.codecs import Codec
from pipeline.format.manifest import Manifest
from pipeline.format.spec import DataSpec
from pipeline.sources.class_names import CLASS_NAMES
from pipeline.sources.folder import Source, open_source, require_source, spelt_out


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build left behind.

    Attributes:
        manifest: The manifest of the whole folder.
        reused: Names of shards that an earlier run had finished.
        retried: Names of shards that lost a worker, once for each loss.
        skipped: Paths of files that are not images in train/CLASS/ or val/CLASS/, as `spelt_out`
            escapes them.
    """

    manifest: Manifest
    reused: tuple[str, ...]
    retried: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A build that is prepared.

    Attributes:
        spec: What decides the bytes of its samples.
        fingerprint: Digest of the spec and of the source's listing.
        records: Folder of the records of its finished shards.
        source: What the source holds.
        num_sources: Number of images by split.
        finished: Shards that an earlier run finished, by name.
        tasks: The other shards.
    """

    spec: DataSpec
    fingerprint: str
    records: Path
    source: Source
    num_sources: Mapping[str, int]
    finished: Mapping[str, Finished]
    tasks: Sequence[Task]


def build_shards(
    config: BuildConfig, *, expected: Manifest | None = None, progress: Progress = SILENT
) -> BuildResult:
    """Build the shards of a source, or continue an interrupted build.

    Args:
        config: What to build.
        expected: For a repair, the manifest whose shards must result.
        progress: Reports bytes of an archive, finished shards checked, and images built.

    Raises:
        ConfigError: If the output folder holds another build.
        SourceError: If the source cannot be used.
        NoRoomError: If the shards do not fit on the disk.
        RejectsError: If more images are unusable than allowed; nothing is published.
        VerificationError: If other shards result than expected; nothing is published.
    """
    num_threads = threads_of(config)
    spec = data_spec(config)
    spec = replace(spec, decoder_library=open_decoder(spec, num_threads).library)
    require_source(config.source)
    worker_pool.start_server(("pipeline.build.worker", "pipeline.pixels.kernels"))
    digests = {shard.name: shard.sha256 for shard in expected.shards} if expected else {}
    with open_state(config.out) as state:
        plan = _prepare(config, spec, num_threads, state, digests, progress)
        written, retried = _run(plan.tasks, config, progress)
        finished = {**plan.finished, **written}
        built = _describe(plan, finished)
        _require_same(built, digests, source=config.source, records=plan.records)
        check_rejects(config.out, built.rejects, at_most=config.max_rejects)
        publish(config.out, plan.records, built, finished)
        shutil.rmtree(plan.records, ignore_errors=True)  # a later run removes what is left
    return BuildResult(
        manifest=built,
        reused=tuple(plan.finished),
        retried=tuple(retried),
        skipped=tuple(map(spelt_out, plan.source.skipped)),
    )


def threads_of(config: BuildConfig) -> int:
    """Divide the CPUs among the workers' decoders."""
    return max(1, num_usable() // config.workers)


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


def _prepare(
    config: BuildConfig,
    spec: DataSpec,
    num_threads: int,
    state: Path,
    digests: Mapping[str, str],
    progress: Progress,
) -> _Plan:
    """List the source, assign its images to shards, and find those that are finished."""
    source = open_source(config.source, scratch=state / SCRATCH_NAME, progress=progress)
    images = {
        split: select(members, seed=config.seed, limit=config.limit)
        for split, members in source.images.items()
    }
    listing = [(image.path, image.size) for members in images.values() for image in members]
    fingerprint = manifest.fingerprint(spec, listing)
    refuse_other_build(config.out, spec, fingerprint)
    records = state / fingerprint
    planned = plan_shards(images, per_shard=samples_per_shard(spec))
    finished = finished_before(
        config.out, records, planned, spec, expected=digests, progress=progress
    )
    shared = (shards_folder(config.out, records), records, spec, num_threads)
    tasks = [
        Task(*shared, shard, members, source.classes, len(members) * sample_bytes(spec))
        for shard, members in planned
        if shard.name not in finished
    ]
    _require_room(config, sum(task.num_bytes for task in tasks))
    open_records(records, spec)
    return _Plan(
        spec=spec,
        fingerprint=fingerprint,
        records=records,
        source=source,
        num_sources={split: len(members) for split, members in images.items()},
        finished=finished,
        tasks=tasks,
    )


def _require_room(config: BuildConfig, num_bytes: int) -> None:
    """Check the free space; a codec may need half of the estimate."""
    free = shutil.disk_usage(config.out).free
    if free < (num_bytes if config.codec == "raw" else num_bytes // 2):
        raise NoRoomError(
            f"the shards need about {num_bytes:,} bytes; got {free:,} free at {config.out}. "
            "Free some space there, or choose a folder on another disk."
        )


def _run(
    tasks: Sequence[Task], config: BuildConfig, progress: Progress
) -> tuple[dict[str, Finished], list[str]]:
    """Write the shards of all tasks.

    Returns:
        What was written, by name, and the names of retried shards.
    """
    retried: list[str] = []

    def retry(task: Task, num_done: int, how: str) -> Task:
        retried.append(task.shard.name)
        return task.retry(num_done, how)

    results = worker_pool.run_tasks(
        write_one,
        tasks,
        workers=config.workers,
        timeout_s=config.image_timeout_s,
        retry=retry,
        num_images=sum(len(task.images) for task in tasks),
        progress=progress,
    )
    return {result.shard.name: result for result in results}, retried


def _describe(plan: _Plan, finished: Mapping[str, Finished]) -> Manifest:
    """Make the manifest; the shards' names sort by split and index."""
    in_order = [finished[name] for name in sorted(finished)]
    classes = plan.source.classes
    return Manifest(
        spec=plan.spec,
        fingerprint=plan.fingerprint,
        classes=classes,
        class_names=tuple(CLASS_NAMES.get(name, name) for name in classes),
        num_sources=dict(plan.num_sources),
        rejects=tuple(reject for shard in in_order for reject in shard.rejects),
        shards=tuple(shard.shard for shard in in_order),
    )


def _require_same(
    built: Manifest, digests: Mapping[str, str], *, source: Path, records: Path
) -> None:
    """Check that a repair gives the shards that it must, and drop its records if not.

    Raises:
        VerificationError: If a shard has another SHA-256.
    """
    sha256s = {shard.name: shard.sha256 for shard in built.shards}
    changed = [name for name, digest in digests.items() if sha256s.get(name) != digest]
    if changed:
        shutil.rmtree(records)  # no later build may reuse these shards
        raise VerificationError(
            f"a repair needs the images that the shards were built from; got others in {source}, "
            f"which would change {', '.join(changed)}. Nothing was changed. Give the original "
            "source."
        )
