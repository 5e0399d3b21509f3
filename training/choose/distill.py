"""Fit a proposer to a trained classifier: `srp-train distill RUN`.

The classifier was trained on random crops. Every training image is classified once by a classifier
that has not seen it; any proposer is then fitted to these out-of-fold logits in minutes.
"""

import contextlib
import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError, ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from training.choose.config import DistillConfig
from training.choose.fit_proposer import fit_to_losses
from training.choose.method import explored_config, fold_paths, train_folds
from training.choose.out_of_fold import out_of_fold_logits
from training.config import TrainConfig
from training.data.processes import Process, require_one
from training.model.classifier import SelectiveClassifier, candidate_indices
from training.model.policies import DISTILLED, POLICIES, policies_using
from training.run.state import build_model, settled
from training.saved.checkpoint import (
    CLASSIFIER,
    MODEL,
    CheckpointMeta,
    check_fits,
    check_own,
    digest_of,
    load_weights,
    pack_checkpoint,
    read_meta,
)
from training.saved.folder import RunPaths, held_run, written_run
from training.saved.record import (
    CacheRecord,
    RunRecord,
    StageRecord,
    current_commit,
    describe_hardware,
    load_record,
)
from training.score.choices import choices_of
from training.score.classify import classify_crops
from training.score.crop_logits import CropLogits
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
        run: Finished run of the classifier. The fold classifiers and their logits are kept there.
        wanted: The proposer and its fit.
        shards: Shards of the run.
        paths: Where the new run's files go.
        process: This process, alone.
        workers: Threads that read samples.
        resume: Whether to keep the new run if it is finished already.
        progress: Shows images and epochs.

    Raises:
        CheckpointError: If there is no such run, or it is of other shards.
        ConfigError: If it cannot be distilled, the new run exists already, or another process
            writes into one of them.
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
        model = build_model(config, shards, process)  # fails before anything is trained
        load_weights(run.last, model.classifier, MODEL + CLASSIFIER)
        unseen, own = _logits(run, base, shards=shards, process=process, progress=progress)
        stage = _fit(
            model, unseen.losses_NK[:, columns], wanted, shards=shards, process=process,
            progress=progress,
        )  # fmt: skip
        chosen_NK = choices_of(model, shards, process, split="val")
        own_NKC = own.logits_NKC[:, columns]
        logits = replace(own, logits_NKC=own_NKC, probabilities_NK=chosen_NK)
        record = replace(
            base,
            name=paths.folder.name,
            config=config,
            shards=shards.place,
            cache=CacheRecord.of(shards),
            commit=current_commit(),
            hardware=describe_hardware(process.device),
            epochs=(),
            stages=(stage,),
            evaluation=summarise(logits, model),
            seconds=time.monotonic() - started,
        )
        return _save(model, logits, record, paths)


def judge(
    run: RunPaths,
    *,
    shards: ShardFolder,
    process: Process,
    workers: int,
    progress: Progress = SILENT,
) -> None:
    """Make the logits that proposers are fitted to, unless they are there.

    `distill` does so itself; a study does it first, so that distillations that run side by side
    neither wait for the first nor make the same.

    Args:
        run: Finished run of the classifier.
        shards: Shards of the run.
        process: This process, alone.
        workers: Threads that read samples.
        progress: Shows images and epochs.

    Raises:
        DivergedError: If a loss stopped being a number.
    """
    base = load_record(run.record)
    base = replace(base, config=replace(base.config, workers=workers))
    _check(base, run)
    _check_shards(base, run, shards)
    _logits(run, base, shards=shards, process=process, progress=progress)


def _fit(
    model: SelectiveClassifier, losses_NK: Tensor, wanted: DistillConfig, *, shards: ShardFolder,
    process: Process, progress: Progress,
) -> StageRecord:  # fmt: skip
    started = time.monotonic()
    try:
        errors = fit_to_losses(
            model, losses_NK, wanted, shards=shards, process=process, progress=progress
        )
    except DivergedError as error:
        fix = "Nothing of it is saved. Fit it again with a lower --proposer-lr."
        raise DivergedError(f"{error} {fix}") from error
    return StageRecord(name="fit", seconds=time.monotonic() - started, errors=tuple(errors))


def distilled_config(base: TrainConfig, wanted: DistillConfig) -> TrainConfig:
    """Combine the classifier's options with those of the fit.

    Candidates and seed are the classifier's unless asked for.
    """
    unused = (name for name in vars(base) if DISTILLED not in policies_using(name))
    fields: dict[str, Any] = {name: getattr(TrainConfig, name) for name in unused}
    fields |= vars(wanted) | {"epochs": base.epochs, "explore_epochs": base.epochs}
    fields["fit_epochs"] = wanted.epochs
    fields["candidates"] = wanted.candidates or base.candidates
    fields["seed"] = base.seed if wanted.seed is None else wanted.seed
    return replace(base, policy=DISTILLED, **fields)


def _finished(paths: RunPaths, config: TrainConfig) -> RunRecord:
    record = load_record(paths.record)
    found = replace(record.config, workers=config.workers, device=config.device)
    if found != config:
        raise ConfigError(
            f"a finished run must have the options that were asked for; got others in "
            f"{paths.folder}. Delete the folder, or name another."
        )
    return record


def _columns(base: RunRecord, config: TrainConfig, shards: ShardFolder, run: RunPaths) -> list[int]:
    """Find the wanted candidates among those of the run's logits."""
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


def _save(
    model: SelectiveClassifier, logits: CropLogits, record: RunRecord, paths: RunPaths
) -> RunRecord:
    """Write the record last, since a folder with a record is complete."""
    meta = CheckpointMeta(
        config=record.config,
        spec=record.data.spec,
        classes=record.data.classes,
        epoch=0,
        best_top1=0.0,
        fingerprint=record.data.fingerprint,
        class_names=record.data.class_names,
    )
    data = pack_checkpoint(meta, model=model)
    for path in (paths.best, paths.last):
        write_file(path, data)
    digest = digest_of(paths.last)
    logits.save(paths.logits, weights=(digest,))
    record = replace(record, last=digest, best=digest)
    record.save(paths.record)
    return record


def _check(base: RunRecord, run: RunPaths) -> None:
    if base.evaluation is None:
        raise ConfigError(
            f"a run must be finished to be distilled; got {len(base.epochs)} of "
            f"{base.config.own_epochs} epochs in {run.folder}. Go on with it: add --resume."
        )
    policy = POLICIES[base.config.policy]
    if policy.is_fitted and not base.config.own_epochs:
        raise ConfigError(
            "what is distilled must be a classifier of its own; got one that was distilled already "
            f"in {run.folder}. Name the run that it was made from."
        )
    if (policy.looks and not policy.is_fitted) or base.config.fold is not None:
        raise ConfigError(
            "what is distilled must be a classifier trained without a proposer on all images, or "
            f"with --policy distilled; got --policy {base.config.policy} in {run.folder}. Train "
            "one with --policy random."
        )


def _check_absent(paths: RunPaths) -> None:
    if paths.record.exists():
        raise ConfigError(
            f"a run must not be overwritten; got one in {paths.folder} already. "
            "Name another: --experiment NAME."
        )


def _check_shards(base: RunRecord, run: RunPaths, shards: ShardFolder) -> None:
    """Check that the logits in a run's folder belong to its weights and to these shards."""
    meta = read_meta(run.last)
    check_fits(meta, shards.manifest, shards.place)
    if base.data.fingerprint != shards.manifest.fingerprint:
        raise CheckpointError(
            "a run must be distilled on the shards that it was trained on, because its "
            f"logits belong to them; got others in {shards.place}. Name the run's own "
            "with --shards, or train one on these."
        )
    check_own(run.last, meta, base)


def _logits(
    run: RunPaths, base: RunRecord, *, shards: ShardFolder, process: Process, progress: Progress
) -> tuple[CropLogits, CropLogits]:
    """Give a run's logits of both splits; the run is locked if some have yet to be computed."""
    is_read = run.out_of_fold.exists() and run.logits.exists()
    with contextlib.nullcontext() if is_read else held_run(run, process, option="RUN"):
        return (
            _out_of_fold(run, base, shards=shards, process=process, progress=progress),
            _own_logits(run, base, shards=shards, process=process, progress=progress),
        )


def _out_of_fold(
    run: RunPaths, base: RunRecord, *, shards: ShardFolder, process: Process, progress: Progress
) -> CropLogits:
    """Load a run's out-of-fold logits, or train a classifier for each fold and compute them."""
    config, folds = explored_config(base.config), fold_paths(run, base.config)
    if not run.out_of_fold.exists() and not base.config.borrows_folds:
        train_folds(run, config, shards=shards, process=process, progress=progress)
    return out_of_fold_logits(
        run.out_of_fold, folds, config, shards=shards, process=process,
        with_mirrors=base.config.judge_mirrors, progress=progress,
    )  # fmt: skip


def _own_logits(
    run: RunPaths, base: RunRecord, *, shards: ShardFolder, process: Process, progress: Progress
) -> CropLogits:
    """Load a run's logits of the validation split, or compute them where their file is gone."""
    model = build_model(base.config, shards, process)
    weights = (digest_of(run.last),)
    if run.logits.exists():
        shape = (shards.manifest.num_samples("val"), len(model.candidates))
        return CropLogits.load(run.logits, weights=weights, shape=shape)
    load_weights(run.last, model)
    logits = classify_crops(model, shards, process=process, progress=progress)
    logits.save(run.logits, weights=weights)
    return logits
