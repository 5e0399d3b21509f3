"""READ FIRST: from a folder of images to a folder of shards.

Scan the source, plan which image goes where, skip the shards that are done, let workers write
the others, and publish the manifest last.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline import crops, engines, manifest
from pipeline.config import BuildConfig
from pipeline.decode import Decoder, make_decoder
from pipeline.durable import write_file
from pipeline.errors import ImageError, RejectsError
from pipeline.imagenette import CLASS_NAMES
from pipeline.manifest import DataSpec, Manifest, Reject
from pipeline.plan import SourceImage, plan_shards, samples_per_shard, select
from pipeline.resume import (
    SCRATCH_NAME,
    Finished,
    finished_before,
    open_records,
    open_state,
    refuse_other_build,
    save_state,
)
from pipeline.schema import SampleMeta, ShardSpec, encode_sample
from pipeline.sidecars import write_sidecars
from pipeline.sources import Progress, Source, open_source, require_source
from pipeline.writer import EncodedSample, write_shard


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build left behind.

    Attributes:
        manifest: Of everything in the folder.
        reused: Shards that an earlier run had finished.
        passed_over: Files of the source that are not images by their names.
    """

    manifest: Manifest
    reused: tuple[str, ...]
    passed_over: tuple[str, ...]


class _Task(NamedTuple):
    """What a worker needs to write one shard."""

    out: Path
    records: Path
    spec: DataSpec
    shard: ShardSpec
    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]


def build(config: BuildConfig, *, on_progress: Progress) -> BuildResult:
    """Build the shards of a source, or finish a build that was broken off.

    Args:
        config: What to build.
        on_progress: Told of the stage and of images done and to do.

    Raises:
        ConfigError: If the output folder holds something else.
        SourceError: If the source cannot be used.
        RejectsError: If more images are unusable than allowed; nothing is published.
    """
    spec = _data_spec(config)
    require_source(config.source)
    with open_state(config.out) as state:
        source, images = _scan(config, state / SCRATCH_NAME, on_progress)
        listing = [(image.path, image.size) for split in images for image in images[split]]
        fingerprint = manifest.fingerprint(spec, listing)
        refuse_other_build(config.out, spec, fingerprint)
        records = open_records(state, fingerprint, spec)
        planned = plan_shards(images, per_shard=_samples_per_shard(spec))
        finished = finished_before(config.out, records, planned, spec, on_progress)
        reused = tuple(finished)
        tasks = [
            _Task(config.out, records, spec, shard, members, source.classes)
            for shard, members in planned
            if shard.name not in finished
        ]
        finished.update(_run(tasks, workers=config.workers, on_progress=on_progress))
        built = _describe(spec, fingerprint, source.classes, images, finished)
        _check_rejects(built.rejects, config)
        _publish(config.out, built)
        shutil.rmtree(records)
    return BuildResult(manifest=built, reused=reused, passed_over=source.passed_over)


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


def _data_spec(config: BuildConfig) -> DataSpec:
    spec = DataSpec(
        canvas_size=config.canvas_size,
        crop_size=config.crop_size,
        glimpse_size=config.glimpse_size,
        candidates=config.candidates,
        layout=config.layout,
        decoder=_decoder(config).name,
        exif=config.exif,
        max_pixels=config.max_pixels,
        seed=config.seed,
        limit=config.limit,
        shard_mib=config.shard_mib,
    )
    spec.plan()  # refuses an unknown set of candidates before anything is read
    return spec


def _decoder(config: BuildConfig | DataSpec) -> Decoder:
    name = config.decoder.split()[0]
    return make_decoder(
        name, canvas_px=config.canvas_size, exif=config.exif, max_pixels=config.max_pixels
    )


def _scan(
    config: BuildConfig, scratch: Path, on_progress: Progress
) -> tuple[Source, dict[str, list[SourceImage]]]:
    """List the source, and order and limit each split's images."""
    source = open_source(config.source, scratch=scratch, on_progress=on_progress)
    images = {
        split: select(members, seed=config.seed, limit=config.limit)
        for split, members in source.images.items()
    }
    return source, images


def _samples_per_shard(spec: DataSpec) -> int:
    return samples_per_shard(
        spec.plan(), layout=spec.layout, glimpse_px=spec.glimpse_size, shard_mib=spec.shard_mib
    )


def _run(
    tasks: Sequence[_Task], *, workers: int, on_progress: Progress
) -> Iterator[tuple[str, Finished]]:
    if not tasks:
        return
    total = sum(len(task.images) for task in tasks)
    report = partial(_report_images, on_progress, total)
    for result in engines.run_local(_write_one, tasks, workers=workers, on_images=report):
        yield result.shard.name, result
    report(total)


def _report_images(on_progress: Progress, total: int, done: int) -> None:
    on_progress("building shards", done, total)


def _write_one(task: _Task) -> Finished:
    """Build one shard, in a worker."""
    rejects: list[Reject] = []
    shard = write_shard(task.out, task.shard, _encode_images(task, rejects))
    finished = Finished(shard=shard, rejects=tuple(rejects))
    save_state(task.records, finished, task.spec)
    return finished


def _encode_images(task: _Task, rejects: list[Reject]) -> Iterator[EncodedSample]:
    plan = task.spec.plan()
    decoder = _decoder(task.spec)
    for key, image in zip(task.shard.keys, task.images, strict=True):
        try:
            yield _encode_image(task, key, image, plan, decoder)
        except (ImageError, OSError) as error:
            rejects.append(Reject(path=image.path, reason=_reason(error)))
        engines.count_image()


def _reason(error: ImageError | OSError) -> str:
    """Say why without paths of this machine: equal sources give equal manifests."""
    return error.strerror or "unreadable" if isinstance(error, OSError) else str(error)


def _encode_image(
    task: _Task, key: str, image: SourceImage, plan: crops.CropPlan, decoder: Decoder
) -> EncodedSample:
    """Follow one image: bytes, canvas, crops, glimpses, members."""
    data = image.read()
    decoded = decoder.decode(data)
    resized = crops.resized_crops(decoded.canvas, plan)
    views = crops.original_crops(decoded.canvas, resized, plan, range(len(plan)))
    label = task.classes.index(image.class_name)
    members = encode_sample(
        canvas=decoded.canvas,
        resized=resized,
        glimpses=crops.glimpses(views, task.spec.glimpse_size),
        label=label,
        meta=SampleMeta(
            path=image.path,
            class_name=image.class_name,
            sha256=hashlib.sha256(data).hexdigest(),
            width=decoded.width,
            height=decoded.height,
        ),
        plan=plan,
        layout=task.spec.layout,
    )
    return EncodedSample(key, label, members)


def _check_rejects(rejects: Sequence[Reject], config: BuildConfig) -> None:
    lines = "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects)
    path = config.out / manifest.REJECTS_NAME
    if rejects or path.exists():
        write_file(path, lines.encode())
    if len(rejects) > config.max_rejects:
        first = rejects[0]
        raise RejectsError(
            f"at most --max-rejects {config.max_rejects} images may be unusable; got "
            f"{len(rejects)}, the first {first.path} ({first.reason}); all are in {path}. "
            f"Add --max-rejects {len(rejects)} to go on without them (the shards without rejects "
            "are kept), or mend them and build in a new folder."
        )


def _publish(out: Path, built: Manifest) -> None:
    write_sidecars(out, built)
    write_file(out / manifest.FILE_NAME, manifest.to_json(built).encode())
