"""How a chooser is trained: four stages in one folder, `srp-train from SHARDS --policy distilled`.

1. explore: a classifier on each half of the training images, on random crops. It is left out where
   the run begins with another that has such halves, and they know the classes already.
2. judge: every crop of every training image is classified by the one that has not seen the image.
3. fit: a proposer learns from these losses which crop will be classified right.
4. exploit: the first half's classifier is trained on all images, on the crops that are chosen.

So the folds cost nothing extra: they are the first epochs of the classifier.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress, Weighted
from training.choose.config import DistillConfig
from training.choose.fit_proposer import FITTING, count_fitted, fit_to_losses
from training.choose.out_of_fold import JUDGING, out_of_fold_logits
from training.config import FOLDS, TEACHING, TrainConfig
from training.data.processes import Process, apart
from training.model.classifier import candidate_indices
from training.model.policies import POLICIES, policies_using
from training.run.state import RunState, division, smallest_half
from training.run.train import fit
from training.saved.checkpoint import CLASSIFIER, load_initial
from training.saved.folder import RunPaths
from training.saved.record import EpochRecord, RunRecord, StageRecord, load_record
from training.score.classify import SCORING

EXPLORED = "random"  # the policy of the classifiers that explore
# What costs as much as one image that is trained on. ResNet18, crops and glimpses of 64 px, one
# thread of an AMD EPYC with bfloat16: 3.7 and 33.
FORWARD = 4  # images that are only classified
FITTED = 33  # glimpses that a proposer is fitted to
SEEN = (
    "warning: the classifier in {start} may have seen the images that it will judge, and then the "
    "choice is fitted to losses that are too low. Begin with a run of --policy distilled, whose "
    "halves go on each by itself."
)
EXPLORING = tuple(f"explore, half {fold + 1} of {FOLDS}" for fold in range(FOLDS))
EXPLOITING = "exploit"
ALL_STAGES = "all stages"  # weighted; its ETA is that of the run


def train(
    config: TrainConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    resume: bool = False,
    progress: Progress = SILENT,
) -> RunRecord:
    """Train a run of any policy, or the rest of it, and evaluate it.

    Arguments, result and errors are those of `training.run.train.fit`.
    """
    if not POLICIES[config.policy].is_fitted:
        return fit(
            config, shards=shards, paths=paths, process=process, resume=resume, progress=progress
        )
    config = settled(config)
    check_stages(config, shards, process.world_size)
    shown = Weighted(progress, ALL_STAGES, stage_costs(config, Counts.of(config, shards)))

    def begin(state: RunState, record: RunRecord) -> RunRecord:
        return run_stages(state, record, shards=shards, paths=paths, progress=shown)

    return fit(
        config, shards=shards, paths=paths, process=process, resume=resume, begin=begin,
        stage=EXPLOITING, progress=shown,
    )  # fmt: skip


def run_stages(
    state: RunState, record: RunRecord, *, shards: ShardFolder, paths: RunPaths, progress: Progress
) -> RunRecord:
    """Explore, judge and fit; what an earlier call finished is not done again.

    Args:
        state: Gets the weights that its first step begins with.
        record: Gets the stages; it is saved after each, and returned.
        shards: To train on.
        paths: Where the run's files go; locked by this process.
        progress: Shows images and epochs.
    """
    started, earlier = time.monotonic(), record.seconds
    config, process, folds = state.config, state.process, fold_paths(paths, state.config)
    explored = explored_config(config)

    def finished(stage: StageRecord) -> RunRecord:
        names = [each.name for each in record.stages]
        stages = record.stages if stage.name in names else (*record.stages, stage)
        done = replace(record, stages=stages, seconds=earlier + time.monotonic() - started)
        if process.is_main:
            done.save(paths.record)
        return done

    if not config.borrows_folds:
        curves = train_folds(paths, explored, shards=shards, process=process, progress=progress)
        seconds = sum(epoch.seconds for curve in curves for epoch in curve)
        record = finished(StageRecord(name="explore", seconds=seconds, curves=curves))
        start = folds[0].folder
    else:  # its classifier of all images may go on: it has judged none
        start = Path(config.initial_checkpoint)
    load_initial(start, state.model, parts=(CLASSIFIER,))
    begun = time.monotonic()
    unseen = out_of_fold_logits(
        paths.out_of_fold, folds, explored, shards=shards, process=process,
        with_mirrors=config.judge_mirrors, progress=progress,
    )  # fmt: skip
    record = finished(StageRecord(name="judge", seconds=time.monotonic() - begun))
    begun = time.monotonic()
    wanted = fit_config(config)
    try:
        errors = fit_to_losses(
            state.model, unseen.losses_NK, wanted, shards=shards, process=process, progress=progress
        )
    except DivergedError as error:
        raise DivergedError(
            f"{error} The classifiers are kept. Train again under another --experiment with a "
            f"--proposer-lr below {wanted.proposer_lr}."
        ) from error
    seconds = time.monotonic() - begun
    return finished(StageRecord(name="fit", seconds=seconds, errors=tuple(errors)))


def explored_config(config: TrainConfig) -> TrainConfig:
    """Say how the classifiers of the folds are trained, but for their fold."""
    # What has seen an image must not teach a classifier that judges it.
    alone = replace(config, **{name: getattr(TrainConfig, name) for name in TEACHING})
    if config.policy == EXPLORED:
        return alone
    unused = (name for name in vars(config) if EXPLORED not in policies_using(name))
    defaults = {name: getattr(TrainConfig, name) for name in unused}
    return replace(alone, policy=EXPLORED, epochs=max(1, config.num_explored), **defaults)


def fit_config(config: TrainConfig) -> DistillConfig:
    """Say how the proposer of a run is fitted."""
    rate = DistillConfig.proposer_lr if config.proposer_lr is None else config.proposer_lr
    return DistillConfig(
        epochs=config.fit_epochs, proposer_lr=rate, balance=config.balance, seed=config.seed
    )


def fold_paths(paths: RunPaths, config: TrainConfig) -> list[RunPaths]:
    """Say where the classifiers of a run's folds lie: its own, or those that it begins with."""
    if config.borrows_folds:
        paths = RunPaths(folder=Path(config.initial_checkpoint))
    return [paths.fold(fold) for fold in range(FOLDS)]


def settled(config: TrainConfig) -> TrainConfig:
    """Decide whether to explore, which depends on what the run begins with.

    Halves that know the classes judge better as they are, and the classifier of all images is a
    better start than a half of it.
    """
    is_open = POLICIES[config.policy].is_fitted and config.explore_epochs is None
    if is_open and has_folds(config.initial_checkpoint):
        return replace(config, explore_epochs=0)
    return config


def has_folds(folder: str) -> bool:
    """Whether a run has a classifier of each fold, which a run in stages does."""
    run = RunPaths(folder=Path(folder))
    return bool(folder) and all(run.fold(fold).last.exists() for fold in range(FOLDS))


def train_folds(
    paths: RunPaths,
    config: TrainConfig,
    *,
    shards: ShardFolder,
    process: Process,
    progress: Progress = SILENT,
) -> tuple[tuple[EpochRecord, ...], ...]:
    """Train a classifier on the images outside of each fold; returns their curves.

    Args:
        paths: Of the run in whose folder they go.
        config: That they share; its seed and epochs are theirs. Where it begins with a run that
            has folds itself, each begins with the same fold of it, so that none has ever seen an
            image that it judges.
        shards: To train on.
        process: This one among its peers.
        progress: Shows images and epochs.
    """
    begun = config.initial_checkpoint
    goes_on = has_folds(begun)
    if begun and not goes_on:
        progress.event("unsound", SEEN.format(start=begun))
    folders = fold_paths(paths, config)

    def train_fold(fold: int, config: TrainConfig, process: Process) -> tuple[EpochRecord, ...]:
        start = str(RunPaths(folder=Path(begun)).fold(fold).folder) if goes_on else begun
        # Validation would cost a third of its training, and decides nothing.
        wanted = replace(config, fold=fold, val_interval=config.epochs, initial_checkpoint=start)
        return fit(
            wanted, shards=shards, paths=folders[fold], process=process, resume=True, scored=False,
            stage=EXPLORING[fold], progress=progress,
        ).epochs  # fmt: skip

    if not _work_apart(config, folders, process):
        return tuple(train_fold(fold, config, process) for fold in range(FOLDS))
    # Half as many ranks take each step in twice as many batches: the step stays the same.
    divided = replace(config, grad_accum_steps=FOLDS * config.grad_accum_steps)
    with apart(process, FOLDS) as (part, fold):
        train_fold(fold, divided, part)
    for stage in EXPLORING:
        progress.update(stage, 1, 1)  # rank 0 has seen its own fold's alone
    return tuple(load_record(folder.record).epochs for folder in folders)


def _work_apart(config: TrainConfig, folders: Sequence[RunPaths], process: Process) -> bool:
    """Whether each fold has ranks of its own: their steps need no exchange with the others.

    Not where one fold is trained already, or where batch norms average over all ranks.
    """
    is_begun = [folder.last.exists() and folder.record.exists() for folder in folders]
    num_left = sum(
        not begun or len(load_record(folder.record).epochs) < config.epochs
        for begun, folder in zip(is_begun, folders, strict=True)
    )
    is_even = process.world_size % FOLDS == 0
    return is_even and num_left == FOLDS and not config.sync_bn


def check_stages(config: TrainConfig, shards: ShardFolder, world_size: int) -> None:
    """Refuse what would end in an error only after the first stage.

    Args:
        config: Settled.
        shards: To train on.
        world_size: Processes.

    Raises:
        ConfigError: If the stages do not fit the shards or what the run begins with.
    """
    if config.own_epochs < 1:
        raise ConfigError(
            "--explore-epochs must be fewer than --epochs, or the classifier never sees a choice; "
            f"got {config.num_explored} of {config.epochs}. Lower it."
        )
    if len(shards.manifest.classes) < 2:
        raise ConfigError(
            "--policy distilled needs at least two classes, or no crop is better than another; got "
            f"{len(shards.manifest.classes)} in {shards.place}. Build shards of more classes."
        )
    if config.borrows_folds and not has_folds(config.initial_checkpoint):
        raise ConfigError(
            "--explore-epochs 0 needs the halves of --initial-checkpoint, which a run of --policy "
            f"distilled has; got none in {config.initial_checkpoint}. Name such a run, or explore "
            "for 1 of --epochs 2 or more."
        )
    fewest = smallest_half(shards)
    if fewest < config.images_per_rank * world_size:
        raise ConfigError(
            "--policy distilled trains on half of the images at a time, which must fill a step; "
            f"got {division(config, world_size)} for {fewest} images. "
            "Lower --batch-size, or build more images."
        )


class Counts(NamedTuple):
    """What a run's cost depends on: images to train on and to score, and the crops of each."""

    num_train: int
    num_val: int
    num_crops: int

    @classmethod
    def of(cls, config: TrainConfig, shards: ShardFolder) -> "Counts":
        """Count what a run finds in shards."""
        num_train, num_val = (shards.manifest.num_samples(split) for split in ("train", "val"))
        return cls(num_train, num_val, len(candidate_indices(config, shards.crop_layout)))


def stage_costs(config: TrainConfig, counts: Counts) -> dict[str, float]:
    """Estimate what each stage costs, in images that are trained on, by its name."""
    return {
        **fold_costs(config, counts),
        FITTING: count_fitted(fit_config(config), counts.num_train) / FITTED,
        EXPLOITING: config.own_epochs * counts.num_train,
        SCORING: counts.num_crops * counts.num_val / FORWARD,
    }


def fold_costs(config: TrainConfig, counts: Counts) -> dict[str, float]:
    """Estimate the same for a run's folds and their logits alone, which any run may have."""
    half = counts.num_train / FOLDS
    epochs = config.num_explored if POLICIES[config.policy].is_fitted else config.epochs
    num_views = counts.num_crops * (1 + config.judge_mirrors)
    return {
        **dict.fromkeys(EXPLORING, epochs * half),
        **dict.fromkeys(JUDGING, num_views * half / FORWARD),
    }
