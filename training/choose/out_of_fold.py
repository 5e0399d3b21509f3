"""A whole distillation: fold classifiers, loss matrix, proposer, evaluation."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError, ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from training.choose.fit_proposer import count_fitted, fill_fold, fit_proposer, judge
from training.config import FOLDS, DistillConfig, TrainConfig, policies_using
from training.data.augment import mirrored_candidates
from training.data.processes import Process, require_one
from training.model.classifier import SelectiveClassifier, candidate_indices
from training.model.policies import DISTILLED
from training.run.checkpoint import (
    CheckpointMeta,
    check_fits,
    check_own,
    digest_of,
    load_weights,
    pack_checkpoint,
    read_meta,
)
from training.run.folder import RunPaths
from training.run.record import RunRecord, current_commit, describe_hardware, load_record
from training.run.resume import held_run, written_run
from training.run.state import RunState, build_model, build_state, fold_rows, settled
from training.run.train import fit
from training.score.choices import choose, glimpse_batches
from training.score.crop_logits import Table
from training.score.evaluate import counting
from training.score.losses import Judged, LossMatrix
from training.score.metrics import summarise


def distill(
    run: RunPaths,
    wanted: DistillConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    workers: int,
    resume: bool = False,
    progress: Progress = SILENT,
) -> RunRecord:
    """Fit a proposer to a trained classifier, and evaluate both together.

    Args:
        run: Of the classifier, finished. The fold classifiers and the loss matrix go there, and
            are made once.
        wanted: The proposer and its fit.
        shards: That the run was trained on.
        paths: Where the new run's files go.
        process: The only one.
        workers: Threads that read samples.
        resume: Whether to take the new run as it is, if it is there.
        progress: Shows images and epochs.

    Raises:
        CheckpointError: If there is no such run, or it is of other shards.
        ConfigError: If it cannot be distilled, or the new run exists already, or another process
            writes into one of both.
        DivergedError: If a loss stopped being a number; the new run is not written.
    """
    require_one(process, "a distillation")
    started = time.monotonic()
    base = load_record(run.record)
    base = replace(base, config=replace(base.config, workers=workers))
    config = settled(distilled_config(base.config, wanted), shards)
    if resume and paths.record.exists():
        return _finished(paths, config)
    _check(base, run)
    with written_run(paths, process):
        _check_absent(paths)
        _check_shards(base, run, shards)
        columns = _columns(base, config, shards, run)
        state = build_state(config, shards, process)  # fails before anything is trained
        load_weights(run.last, state.model.classifier, "classifier.")
        matrix = loss_matrix(run, base, shards=shards, process=process, progress=progress)
        judged = judge_run(run, base, shards=shards, process=process, progress=progress)
        try:
            chosen_NK = fit_and_choose(
                state.model, matrix.losses_NK[:, columns], shards, process=process,
                progress=progress,
            )  # fmt: skip
        except DivergedError as error:
            fix = "Nothing of it is saved. Fit it again with a lower --proposer-lr."
            raise DivergedError(f"{error} {fix}") from error
        table = Table.of(judged.labels_N, judged.logits_NKC[:, columns], chosen_NK)
        evaluation = summarise(table, state.model)
        record = replace(
            base,
            name=paths.folder.name,
            config=config,
            shards=str(shards.path),
            commit=current_commit(),
            hardware=describe_hardware(process.device),
            epochs=(),
            evaluation=evaluation,
            seconds=time.monotonic() - started,
        )
        return _save(state, table, record, paths)


def distilled_config(base: TrainConfig, wanted: DistillConfig) -> TrainConfig:
    """Describe the whole: a classifier's options but for what the proposer is fitted with.

    Candidates and seed that were not asked for are the classifier's.
    """
    unused = (name for name in vars(base) if DISTILLED not in policies_using(name))
    fields: dict[str, Any] = {name: getattr(TrainConfig, name) for name in unused}
    fields |= vars(wanted)
    fields["candidates"] = wanted.candidates or base.candidates
    fields["seed"] = base.seed if wanted.seed is None else wanted.seed
    return replace(base, policy=DISTILLED, **fields)


def _finished(paths: RunPaths, config: TrainConfig) -> RunRecord:
    record = load_record(paths.record)
    found = replace(record.config, workers=config.workers, device=config.device)
    if found != config:
        raise ConfigError(
            f"a run must be what was asked for to be taken as it is; got other options in "
            f"{paths.folder}. Delete the folder, or name another."
        )
    return record


def _columns(base: RunRecord, config: TrainConfig, shards: ShardFolder, run: RunPaths) -> list[int]:
    """Find the wanted candidates among those that the run's losses are of."""
    known = candidate_indices(base.config, shards.crop_layout)
    wanted = candidate_indices(config, shards.crop_layout)
    missing = [shards.crop_layout.names[k] for k in wanted if k not in known]
    if missing:
        raise ConfigError(
            f"--candidates must be some of the run's; got {', '.join(missing)}, which the "
            f"classifier in {run.folder} was not trained on. Name some of "
            f"{', '.join(shards.crop_layout.names[k] for k in known)}."
        )
    return [known.index(k) for k in wanted]


def fit_and_choose(
    model: SelectiveClassifier,
    losses_NK: Tensor,
    shards: ShardFolder,
    *,
    process: Process,
    progress: Progress = SILENT,
) -> Tensor:
    """Fit a model's proposer to losses, and let it choose on the validation split.

    Args:
        model: Whose proposer is changed in place; its config is that of the fit.
        losses_NK: Of the training split, on the model's candidates.
        shards: That the losses are of.
        process: That the model is on.
        progress: Shows images.

    Returns:
        Float32, of N validation samples, rows that sum to 1.

    Raises:
        DivergedError: If the fit stopped yielding numbers.
    """
    if model.proposer is None:
        raise RuntimeError("a fit without a proposer")
    seen = glimpse_batches(model, shards, process, split="train")
    fit_proposer(
        model.proposer,
        torch.cat([glimpses_BLSS.cpu().clone() for glimpses_BLSS in seen]),  # they are used again
        losses_NK,
        model.config,
        counterparts=mirrored_candidates(shards.crop_layout, model.candidates),
        looked_counterparts=mirrored_candidates(shards.crop_layout, model.looked_at),
        on_rows=counting(
            progress, "fitting the proposer", count_fitted(model.config, len(losses_NK))
        ),
    )
    model.eval()
    shown = glimpse_batches(model, shards, process, split="val")
    return torch.cat([choose(model, glimpses_BLSS) for glimpses_BLSS in shown])


def _save(state: RunState, table: Table, record: RunRecord, paths: RunPaths) -> RunRecord:
    """Write the record last, naming the rest: a folder that has one is complete."""
    meta = CheckpointMeta(
        config=record.config,
        spec=record.data.spec,
        classes=record.data.classes,
        epoch=0,
        best_top1=0.0,
        fingerprint=record.data.fingerprint,
    )
    data = pack_checkpoint(
        meta, model=state.model, optimizer=state.optimizer, scheduler=state.scheduler
    )
    for path in (paths.best, paths.last):
        write_file(path, data)
    digest = digest_of(paths.last)
    table.save(paths.table, weights=digest)
    record = replace(record, last=digest, best=digest)
    record.save(paths.record)
    return record


def _check(base: RunRecord, run: RunPaths) -> None:
    if base.evaluation is None:
        raise ConfigError(
            f"a run must be finished to be distilled; got {len(base.epochs)} of "
            f"{base.config.epochs} epochs in {run.folder}. Go on with it: add --resume."
        )
    if base.config.selects or base.config.fold is not None:
        raise ConfigError(
            "what is distilled must be a classifier trained without a proposer on all images; got "
            f"--policy {base.config.policy} in {run.folder}. Train one with --policy random."
        )


def _check_absent(paths: RunPaths) -> None:
    if paths.record.exists():
        raise ConfigError(
            f"a run must not be overwritten; got one in {paths.folder} already. "
            "Name another: --experiment NAME."
        )


def _check_shards(base: RunRecord, run: RunPaths, shards: ShardFolder) -> None:
    """Make sure that the losses beside a run are of its weights, and of the shards' images."""
    meta = read_meta(run.last)
    check_fits(meta, shards.manifest, shards.path)
    if base.data.fingerprint != shards.manifest.fingerprint:
        raise CheckpointError(
            "a run must be distilled on the shards that it was trained on, which its losses are "
            f"of; got others in {shards.path}. Name the run's own with --shards, or train one "
            "on these."
        )
    check_own(run.last, meta, base)


def loss_matrix(
    run: RunPaths,
    base: RunRecord,
    *,
    shards: ShardFolder,
    process: Process,
    progress: Progress = SILENT,
) -> LossMatrix:
    """Take up a run's loss matrix, or train the fold classifiers and compute it.

    Raises:
        CheckpointError: If what is there is of other samples or weights.
    """
    path = run.losses
    used = (run.last, *(run.fold(fold).last for fold in range(FOLDS)))
    num_samples = shards.manifest.num_samples("train")
    num_crops = len(build_model(base.config, shards, process).candidates)
    if path.exists():
        return LossMatrix.load(
            path, num_samples=num_samples, num_crops=num_crops, weights=tuple(map(digest_of, used))
        )
    matrix = LossMatrix.empty(num_samples, num_crops)
    with held_run(run, process, option="RUN"):
        for fold in range(FOLDS):
            below = run.fold(fold)
            config = replace(base.config, fold=fold, val_interval=base.config.epochs)
            fit(  # its score is not used, and would cost a third of its training
                config, shards=shards, paths=below, process=process, resume=True, scored=False,
                progress=progress,
            )  # fmt: skip
            model = build_model(config, shards, process)
            load_weights(below.last, model)
            num_rows = len(fold_rows(num_samples, fold))
            on_rows = counting(progress, "scoring what was left out", num_rows)
            fill_fold(matrix, model, shards, fold=fold, process=process, on_rows=on_rows)
        matrix.save(path, weights=tuple(map(digest_of, used)))
    return matrix


def judge_run(
    run: RunPaths, base: RunRecord, *, shards: ShardFolder, process: Process, progress: Progress
) -> Judged:
    """Take up what a run's classifier says of the validation images, or let it say it.

    Raises:
        CheckpointError: If what is there is of other samples or weights.
    """
    model = build_model(base.config, shards, process)
    num_samples = shards.manifest.num_samples("val")
    weights = (digest_of(run.last),)
    if run.logits.exists():
        return Judged.load(
            run.logits, num_samples=num_samples, num_crops=len(model.candidates), weights=weights
        )
    load_weights(run.last, model)
    counter = counting(progress, "scoring every crop", num_samples)
    with held_run(run, process, option="RUN"):
        judged = judge(model, shards, process=process, on_rows=counter)
        judged.save(run.logits, weights=weights)
    return judged
