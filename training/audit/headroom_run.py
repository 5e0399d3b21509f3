"""Train what an estimate of the headroom needs, or take it up: two classifiers and a proposer."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from training.audit.headroom import Headroom, headroom
from training.choose.fit_proposer import fill_fold
from training.choose.out_of_fold import distilled_config, fit_and_choose
from training.config import FOLDS, DistillConfig, HeadroomConfig, TrainConfig
from training.data.processes import Process, require_one
from training.model.classifier import candidate_indices
from training.run.checkpoint import digest_of, load_weights
from training.run.folder import RunPaths
from training.run.resume import held_run
from training.run.state import build_model, fold_rows
from training.run.train import fit
from training.score.crop_logits import Table
from training.score.evaluate import counting
from training.score.losses import LossMatrix
from training.study.runner import FORWARD, PlannedRun, StudyProgress


def plan_parts(
    wanted: HeadroomConfig, shards: ShardFolder, *, workers: int, device: str
) -> tuple[PlannedRun, ...]:
    """List what is trained: a classifier for each half of the training split, then the proposer.

    Raises:
        ConfigError: If the shards hold too few images or crops for it.
    """
    num_train, num_val = (shards.manifest.num_samples(split) for split in ("train", "val"))
    base = TrainConfig(
        policy="random", candidates=wanted.candidates, model=wanted.model, epochs=wanted.epochs,
        batch_size=wanted.batch_size, lr=wanted.lr, val_interval=wanted.epochs, workers=workers,
        device=device,
    )  # fmt: skip
    _check_images(wanted, shards)
    num_crops = _count_crops(base, shards)
    halves = [
        PlannedRun(
            name=f"half-{half}",
            config=replace(base, fold=half, seed=wanted.seed + half),
            cost=wanted.epochs * (num_train // FOLDS) + num_crops * num_val // FORWARD,
        )
        for half in range(FOLDS)
    ]
    fitted = DistillConfig(
        proposer="map" if "full" in shards.crop_layout.names else "crops",
        position_prior=True,
        seed=wanted.seed,
    )
    proposer = distilled_config(base, fitted)
    return (
        *halves,
        PlannedRun(name="proposer", config=proposer, cost=num_crops * num_train // FORWARD),
    )


def _check_images(wanted: HeadroomConfig, shards: ShardFolder) -> None:
    num_train = shards.manifest.num_samples("train")
    most = num_train // FOLDS
    if most < wanted.batch_size:
        raise ConfigError(
            f"each half of the training images must fill a batch; got --batch-size "
            f"{wanted.batch_size} for {num_train} images in {shards.path}. "
            f"{f'Lower --batch-size to {most}' if most > 1 else 'Take more images'}, and leave "
            "--limit out if it is given."
        )
    shards.reader("val")  # which must hold images


def _count_crops(config: TrainConfig, shards: ShardFolder) -> int:
    chosen = candidate_indices(config, shards.crop_layout)
    if len(chosen) < 2:
        raise ConfigError(
            "an estimate needs at least two candidates to choose among; got "
            f"{', '.join(shards.crop_layout.names[k] for k in chosen)} in {shards.path}. "
            "Name more in --candidates, or build shards with --candidates full+five."
        )
    return len(chosen)


def work_folder(output: Path, wanted: HeadroomConfig, shards: ShardFolder) -> Path:
    """Name the folder of one estimate: the same options on the same shards have the same one.

    It lies a floor deeper than runs do, so that no report takes its parts for runs.
    """
    told = json.dumps([asdict(wanted), shards.manifest.fingerprint], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return output / "headroom" / f"{Path(wanted.model).name}-{digest}"


def estimate_headroom(
    parts: tuple[PlannedRun, ...],
    *,
    shards: ShardFolder,
    folder: Path,
    process: Process,
    progress: Progress = SILENT,
) -> Headroom:
    """Train the parts that are not finished yet, and compare ways to choose.

    Args:
        parts: From `plan_parts`.
        shards: That they were planned for.
        folder: Where the parts go, each to a folder of its own.
        process: The only one.
        progress: Shows the parts, their images and epochs.

    Raises:
        ConfigError: If there is no such classifier, or there are several processes.
        DivergedError: If a loss stopped being a number.
    """
    require_one(process, "an estimate")
    *halves, proposer = parts
    chooser = build_model(proposer.config, shards, process)  # fails before anything is trained
    shown = StudyProgress(progress, parts)
    tables = []
    for position, half in enumerate(halves):
        shown.begin(position)
        paths = RunPaths(folder=folder / half.name)
        try:
            record = fit(
                half.config, shards=shards, paths=paths, process=process, resume=True,
                progress=shown,
            )  # fmt: skip
        except DivergedError as error:
            raise DivergedError(
                f"a small classifier must learn; got a loss or weights that are no numbers in "
                f"{folder / half.name}. Use a --lr below {half.config.lr}."
            ) from error
        tables.append(Table.load(paths.table, weights=record.last))
    shown.begin(len(halves))
    matrix = _losses(halves, shards, folder, process, shown)
    try:
        chosen_NK = fit_and_choose(
            chooser, matrix.losses_NK, shards, process=process, progress=shown
        )
    except DivergedError as error:
        fix = f"The classifiers are kept, in {folder}. Use a lower --lr, or another --seed."
        raise DivergedError(f"{error} {fix}") from error
    first, second = tables
    chosen_N = chosen_NK.argmax(1).numpy()
    return headroom((first, second), chooser.names, chosen_N, seed=proposer.config.seed)


def _losses(
    halves: list[PlannedRun],
    shards: ShardFolder,
    folder: Path,
    process: Process,
    progress: Progress,
) -> LossMatrix:
    """Take up what each classifier loses on the images that the other has learnt from."""
    path = RunPaths(folder=folder).losses
    num_samples = shards.manifest.num_samples("train")
    models = [build_model(half.config, shards, process) for half in halves]
    num_crops = len(models[0].candidates)
    weights = tuple(digest_of(RunPaths(folder=folder / half.name).last) for half in halves)
    if path.exists():
        return LossMatrix.load(path, num_samples=num_samples, num_crops=num_crops, weights=weights)
    matrix = LossMatrix.empty(num_samples, num_crops)
    with held_run(RunPaths(folder=folder), process):
        for fold, (half, model) in enumerate(zip(halves, models, strict=True)):
            load_weights(RunPaths(folder=folder / half.name).last, model)
            on_rows = counting(
                progress, "scoring what was left out", len(fold_rows(num_samples, fold))
            )
            fill_fold(matrix, model, shards, fold=fold, process=process, on_rows=on_rows)
        matrix.save(path, weights=weights)
    return matrix
