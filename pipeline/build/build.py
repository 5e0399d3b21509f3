"""READ FIRST: from a folder of images to a folder of shards.

Scan the source, plan which image goes where, skip the shards that are done, let workers write
the others, and publish the manifest last.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.build import worker_pool
from pipeline.build.config import BuildConfig
from pipeline.build.planning import (
    plan_shards,
    sample_bytes,
    samples_per_shard,
    select,
)
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
from pipeline.decode import Backend, open_decoder
from pipeline.format import manifest
from pipeline.format.codecs import Codec
from pipeline.format.manifest import Manifest
from pipeline.format.spec import DataSpec
from pipeline.sources.class_names import CLASS_NAMES
from pipeline.sources.folder import Source, open_source, require_source, spelt_out
from pipeline.sources.image import SourceImage


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build left behind.

    Attributes:
        manifest: Of everything in the folder.
        reused: Shards that an earlier run had finished.
        retried: Shards that were begun anew because a worker died or hung, once for each.
        skipped: What was not taken of the source: files that are no images by suffix or place,
            and links back; spelt as the paths of images are.
    """

    manifest: Manifest
    reused: tuple[str, ...]
    retried: tuple[str, ...]
    skipped: tuple[str, ...]


def build_shards(
    config: BuildConfig, *, expected: Manifest | None = None, progress: Progress = SILENT
) -> BuildResult:
    """Build the shards of a source, or finish a build that was broken off.

    Args:
        config: What to build.
        expected: Whose shards must come out; others are not published.
        progress: Reports bytes of an archive, finished shards checked, and images built.

    Raises:
        ConfigError: If the output folder holds something else.
        SourceError: If the source cannot be used.
        NoRoomError: If the shards cannot fit on the disk.
        RejectsError: If more images are unusable than allowed; nothing is published.
        VerificationError: If other shards came out than are expected; nothing is published.
    """
    spec, backend = data_spec(config), _backend(config)
    spec = replace(spec, decoder_library=open_decoder(backend, spec).library)
    require_source(config.source)
    worker_pool.start_server(("pipeline.build.worker", "pipeline.pixels.kernels"))
    with open_state(config.out) as state:
        source, images = _scan(config, state / SCRATCH_NAME, progress)
        listing = [(image.path, image.size) for split in images for image in images[split]]
        fingerprint = manifest.fingerprint(spec, listing)
        refuse_other_build(config.out, spec, fingerprint)
        records = state / fingerprint
        planned = plan_shards(images, per_shard=samples_per_shard(spec))
        digests = {shard.name: shard.sha256 for shard in expected.shards} if expected else {}
        finished = finished_before(
            config.out, records, planned, spec, expected=digests, progress=progress
        )
        reused = tuple(finished)
        folder = shards_folder(config.out, records)
        shared = (folder, records, spec, backend)
        tasks = [
            Task(*shared, shard, members, source.classes, len(members) * sample_bytes(spec))
            for shard, members in planned
            if shard.name not in finished
        ]
        _require_room(config, sum(task.num_bytes for task in tasks))
        open_records(records, spec)
        retried: list[str] = []
        finished.update(_run(tasks, config, progress, retried))
        built = _describe(spec, fingerprint, source.classes, images, finished)
        _require_same(built, digests, source=config.source, records=records)
        check_rejects(config.out, built.rejects, at_most=config.max_rejects)
        publish(config.out, records, built, finished)
        shutil.rmtree(records, ignore_errors=True)  # all is done; a later run removes what is left
    return BuildResult(
        manifest=built,
        reused=reused,
        retried=tuple(retried),
        skipped=tuple(map(spelt_out, source.skipped)),
    )


def _require_same(
    built: Manifest, digests: Mapping[str, str], *, source: Path, records: Path
) -> None:
    """Refuse shards with other SHA-256 than they must have, and forget them.

    Raises:
        VerificationError: If there are any.
    """
    sha256s = {shard.name: shard.sha256 for shard in built.shards}
    changed = [name for name, digest in digests.items() if sha256s.get(name) != digest]
    if not changed:
        return
    shutil.rmtree(records)  # no later build may take them for its own
    raise VerificationError(
        f"shards must be repaired from the images that they were built from; got others in "
        f"{source}: {', '.join(changed)} would hold other samples. Nothing was changed. Name the "
        "source that the shards were built from."
    )


def _describe(
    spec: DataSpec,
    fingerprint: str,
    classes: tuple[str, ...],
    images: Mapping[str, Sequence[SourceImage]],
    finished: Mapping[str, Finished],
) -> Manifest:
    """Put the manifest together; the shards' names sort by split and index."""
    in_order = [finished[name] for name in sorted(finished)]
    return Manifest(
        spec=spec,
        fingerprint=fingerprint,
        classes=classes,
        class_names=tuple(CLASS_NAMES.get(name, name) for name in classes),
        num_sources={split: len(members) for split, members in images.items()},
        rejects=tuple(reject for shard in in_order for reject in shard.rejects),
        shards=tuple(shard.shard for shard in in_order),
    )


def _backend(config: BuildConfig) -> Backend:
    cpus = num_usable()
    return Backend(
        decoder=config.decoder,
        device=config.device,
        num_threads=max(1, cpus // config.workers),
    )


def data_spec(config: BuildConfig) -> DataSpec:
    """Take from a config what decides the bytes of samples; the decoder adds its library."""
    is_jpeg = config.codec == "jpeg"
    return DataSpec(
        canvas_size=config.canvas_size,
        crop_size=config.crop_size,
        glimpse_size=config.glimpse_size,
        candidates=config.candidates,
        layout=config.layout,
        decoder=config.decoder,
        device=config.device,
        draft=config.draft,
        exif=config.exif,
        max_pixels=config.max_pixels,
        seed=config.seed,
        limit=config.limit,
        shard_mib=config.shard_mib,
        codec=config.codec,
        codec_library=Codec(config.codec).library,
        jpeg_quality=config.jpeg_quality if is_jpeg else None,
        jpeg_subsampling=config.jpeg_subsampling if is_jpeg else None,
    )


def _scan(
    config: BuildConfig, scratch: Path, progress: Progress
) -> tuple[Source, dict[str, list[SourceImage]]]:
    """List the source, and order and limit each split's images."""
    source = open_source(config.source, scratch=scratch, progress=progress)
    images = {
        split: select(members, seed=config.seed, limit=config.limit)
        for split, members in source.images.items()
    }
    return source, images


def _run(
    tasks: Sequence[Task], config: BuildConfig, progress: Progress, retried: list[str]
) -> Iterator[tuple[str, Finished]]:
    if not tasks:
        return

    def retry(task: Task, num_done: int, how: str) -> Task:
        retried.append(task.shard.name)
        return task.retry(num_done, how)

    total = sum(len(task.images) for task in tasks)
    for result in worker_pool.run_tasks(
        write_one,
        tasks,
        workers=config.workers,
        timeout_s=config.image_timeout_s,
        retry=retry,
        num_images=total,
        progress=progress,
    ):
        yield result.shard.name, result
    progress.update("building shards", total, total)


def _require_room(config: BuildConfig, num_bytes: int) -> None:
    """Refuse to begin what cannot fit; of bytes that a codec may spare, half must."""
    free = shutil.disk_usage(config.out).free
    if free < (num_bytes if config.codec == "raw" else num_bytes // 2):
        raise NoRoomError(
            f"OUT must have room for the shards that are to be built, about {num_bytes:,} bytes; "
            f"got {free:,} free at {config.out}. Free some there, or name a folder on another disk."
        )
