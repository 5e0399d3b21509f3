"""Load a finished run, and score it again.

What a run is scored on may differ from what it was trained on: other shards of the same spec,
other candidates.
"""

from dataclasses import replace
from pathlib import Path

from pipeline import ShardFolder
from pipeline.common.errors import CheckpointError, ConfigError
from pipeline.common.progress import SILENT, Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.run.state import build_model
from training.saved.checkpoint import (
    check_fits,
    check_own,
    checkpoint_of,
    load_weights,
    read_meta,
)
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.classify import classify_crops
from training.score.metrics import Evaluation, summarise


def evaluate_run(
    paths: RunPaths,
    *,
    shards_path: str | Path | None,
    candidates: str | None,
    checkpoint: str,
    workers: int,
    process: Process,
    progress: Progress = SILENT,
) -> tuple[RunRecord, Evaluation]:
    """Score a finished or unfinished run again.

    Args:
        paths: Paths of the run's files.
        shards_path: To score on; None takes those that the run was trained on.
        candidates: To score and to choose among; None takes the run's.
        checkpoint: `last` or `best`.
        workers: Threads that read samples.
        process: This one among its peers.
        progress: Shows images.

    Raises:
        CheckpointError: If there is no such run, or the shards are of another spec.
    """
    record = load_record(paths.record)
    shards = shards_of(record, shards_path)
    model = load_model(
        paths, shards, candidates=candidates, checkpoint=checkpoint, workers=workers,
        process=process,
    )  # fmt: skip
    logits = classify_crops(model, shards, process=process, progress=progress)
    return record, summarise(logits, model)


def load_model(
    paths: RunPaths,
    shards: ShardFolder,
    *,
    candidates: str | None = None,
    checkpoint: str = "last",
    workers: int,
    process: Process,
) -> SelectiveClassifier:
    """Load a run's networks, to score on shards.

    Args:
        paths: Paths of the run's files.
        shards: To score on.
        candidates: To score and to choose among; None takes the run's.
        checkpoint: `last` or `best`.
        workers: Threads that read samples.
        process: This one among its peers.

    Raises:
        CheckpointError: If there is no such run, its checkpoint is of another, or the shards are
            of another spec.
    """
    weights = paths.best if checkpoint == "best" else paths.last
    meta = read_meta(weights)
    check_fits(meta, shards.manifest, shards.place)
    check_own(weights, meta, load_record(paths.record))
    config = replace(
        meta.config,
        workers=workers,
        candidates=candidates or meta.config.candidates or meta.spec.candidates,
    )
    if config.selects:
        config = replace(config, glimpse_size=config.glimpse_size or meta.spec.glimpse_size)
    model = build_model(config, shards, process)
    load_weights(weights, model)
    return model


def load_teachers(
    config: TrainConfig, shards: ShardFolder, process: Process
) -> tuple[SelectiveClassifier, ...]:
    """Load the classifiers that a run learns from, on the process's device; their weights stay.

    Raises:
        CheckpointError: If there is no such run.
        ConfigError: If one has other classes or sees crops of another size, or has seen images
            that this run is tuned on.
    """
    return tuple(_load_teacher(Path(each), config, shards, process) for each in config.kd_model)


def _load_teacher(
    run: Path, config: TrainConfig, shards: ShardFolder, process: Process
) -> SelectiveClassifier:
    file, spec = checkpoint_of(run), shards.manifest.spec
    meta = read_meta(file)
    if meta.classes != shards.manifest.classes or meta.spec.crop_size != spec.crop_size:
        raise ConfigError(
            "--kd-model must know the same classes, from crops of the same size; got "
            f"{len(meta.classes)} classes and crops of {meta.spec.crop_size} px in {file}, for "
            f"{len(shards.manifest.classes)} and {spec.crop_size} px in {shards.place}. Name a run "
            "that was trained on these shards."
        )
    if config.dev and not meta.config.dev:
        raise ConfigError(
            "--dev tunes on images that no teacher may have seen; got a --kd-model that was "
            f"trained without --dev, {file}. Train it with --dev, or drop --dev."
        )
    model = SelectiveClassifier(
        meta.config,
        plan=meta.spec.crop_layout,
        num_classes=len(meta.classes),
        glimpse_px=meta.config.glimpse_size or meta.spec.glimpse_size,
    )
    load_weights(file, model)
    return model.to(process.device).eval().requires_grad_(False)


def shards_of(record: RunRecord, place: str | Path | None) -> ShardFolder:
    """Open the shards that are named, or those that a run was trained on, where its record says.

    Shards of an address come through the cache of the training.

    Raises:
        CheckpointError: If there is no longer such a folder.
        ConfigError, DownloadError: If the shards at the address cannot be opened.
    """
    cache = None if place else record.cache
    try:
        if cache is None:
            shards = ShardFolder.open(place or record.shards)
        else:
            folder = Path(cache.folder)
            shards = ShardFolder.open(record.shards, cache=folder, cache_mib=cache.limit_mib)
    except ConfigError as error:
        if place or cache:
            raise
        raise CheckpointError(
            f"a run's shards must be at the path in its record; got none at {record.shards} (a "
            "relative path starts at the current folder). Name their folder with --shards."
        ) from error
    return shards.with_dev() if record.config.dev else shards
