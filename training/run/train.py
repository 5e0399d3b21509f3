"""READ FIRST: fit() trains one run from shards to a record; `step.py` holds one step of it."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import DivergedError, PreemptedRunError, StoppedRunError
from training.config import TrainConfig
from training.data.processes import Process, sum_over_ranks, wait_for_main
from training.run.checkpoint import digest_of, load_initial
from training.run.epoch import OnProgress, counting, epoch_record, train_epoch
from training.run.folder import RunPaths
from training.run.record import EpochPart, EpochRecord, RunRecord
from training.run.resume import load_last, open_record, save_epoch, save_part, written_run
from training.run.signals import Stop, noted_signals
from training.run.state import RunState, build_state, settled
from training.score.evaluate import evaluate_choice, evaluate_table

OnEpoch = Callable[[EpochRecord], None]


def fit(
    config: TrainConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    resume: bool,
    on_progress: OnProgress,
    on_epoch: OnEpoch,
) -> RunRecord:
    """Train one run and evaluate it.

    Args:
        config: What to train.
        shards: To train on.
        paths: Where the run's files go.
        process: This one among its peers.
        resume: Whether to go on from the run's last checkpoint, if it has one.
        on_progress: Told of images as they pass.
        on_epoch: Told of each finished epoch.

    Returns:
        The record, which is on disk as well.

    Raises:
        ConfigError: If the config does not fit the shards, or the run exists already or is being
            written.
        CheckpointError: If the run to resume is another one.
        DivergedError: If the loss stopped being a number; the last checkpoint stays.
        StoppedRunError: If SIGTERM or Ctrl-C came while it trained; all steps are saved.
    """
    config = settled(config, shards)
    with written_run(paths, process):
        record = open_record(config, shards=shards, paths=paths, process=process, resume=resume)
        if record.evaluation is not None:
            return record
        done = _train(config, record, shards, paths, process, on_progress, on_epoch)
        return _finish(
            done.state, shards, paths, done.record, best=done.best, on_progress=on_progress
        )


def train(
    config: TrainConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    on_progress: OnProgress,
    on_epoch: OnEpoch,
) -> None:
    """Train a run, or go on with it, and leave its last weights unscored; `fit` would finish it.

    Arguments and errors are those of `fit`.
    """
    config = settled(config, shards)
    with written_run(paths, process):
        record = open_record(config, shards=shards, paths=paths, process=process, resume=True)
        if record.evaluation is None:
            _train(config, record, shards, paths, process, on_progress, on_epoch)


def _train(
    config: TrainConfig,
    record: RunRecord,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    on_progress: OnProgress,
    on_epoch: OnEpoch,
) -> "_Training":
    """Train what is left of a run."""
    started = time.monotonic()
    state = build_state(config, shards, process)
    best, part = 0.0, None
    if paths.last.exists():
        best, part = load_last(state, paths, record)
    elif config.initial_checkpoint:
        source = Path(config.initial_checkpoint)
        load_initial(source, state.model, with_proposer=config.holds_proposer)
    try:
        with noted_signals() as stop:
            training = _Training(
                state=state,
                shards=shards,
                paths=paths,
                record=record,
                best=best,
                part=part or EpochPart(epoch=len(record.epochs)),
                since=started - record.seconds,
                stop=stop,
                on_progress=on_progress,
                on_epoch=on_epoch,
            )
            training.train()
    except DivergedError as error:
        if error.keys:  # on all ranks or on none
            if process.is_main:
                write_file(paths.diverged, json.dumps({"keys": error.keys}, indent=1).encode())
            wait_for_main(process)  # torchrun kills the others once one has ended
        raise
    return training


class _StopValidatingError(Exception):
    """Somebody wants the process to end while it validates."""


@dataclass(kw_only=True)
class _Training:
    """A run between its first step and its last.

    `since` is when it would have begun if it had not been broken, by the monotonic clock.
    """

    state: RunState
    shards: ShardFolder
    paths: RunPaths
    record: RunRecord
    best: float
    part: EpochPart
    since: float
    stop: Stop
    on_progress: OnProgress
    on_epoch: OnEpoch

    def train(self) -> None:
        """Train the epochs that are left."""
        state, config = self.state, self.state.config
        while len(self.record.epochs) < config.epochs:
            self.part = train_epoch(state, self.part, stop=self.stop, on_progress=self.on_progress)
            if self.part.step < state.steps:
                raise self._stopped()
            done = epoch_record(self.part, state)
            # The last weights get the whole table instead.
            if done.epoch % config.val_interval == 0 and done.epoch < config.epochs:
                done = replace(done, val_top1=self._validate())
            self._tell(epochs=(*self.record.epochs, done))
            self.best = save_epoch(state, self.paths, self.record, self.best)
            self.part = EpochPart(epoch=done.epoch)
            self.on_epoch(done)
            if self._is_stop_wanted():
                raise self._stopped()

    def _validate(self) -> float:
        total = self.shards.manifest.num_samples("val")
        counter = counting(self.on_progress, "val", total, epoch=self.part.epoch + 1)

        def on_images(num_images: int) -> None:
            # With peers it goes on to the end, since they wait for this one's figures.
            if self.stop.wanted and self.state.process.world_size == 1:
                raise _StopValidatingError
            counter(num_images)

        try:
            return evaluate_choice(
                self.state.model, self.shards, process=self.state.process, on_images=on_images
            )
        except _StopValidatingError:
            raise self._stopped() from None

    def _is_stop_wanted(self) -> bool:
        process = self.state.process
        wanted = torch.tensor([bool(self.stop.wanted)], dtype=torch.int64, device=process.device)
        return bool(sum_over_ranks(wanted, process))

    def _tell(self, **news: Any) -> None:
        self.record = replace(self.record, seconds=time.monotonic() - self.since, **news)

    def _stopped(self) -> StoppedRunError:
        """Save what there is, and say where that is."""
        self._tell()
        if self.part.step:
            save_part(self.state, self.paths, self.record, self.best, self.part)
        where = f"step {self.part.step} of " if self.part.step else "the end of "
        epoch = self.part.epoch + bool(self.part.step)
        kind = StoppedRunError if self.stop.wanted == signal.SIGINT else PreemptedRunError
        return kind(f"stopped at {where}epoch {epoch}, and saved, in {self.paths.folder}.")


def _finish(
    state: RunState,
    shards: ShardFolder,
    paths: RunPaths,
    record: RunRecord,
    *,
    best: float,
    on_progress: OnProgress,
) -> RunRecord:
    """Evaluate the last weights on every crop, and close the record."""
    started = time.monotonic()
    total = shards.manifest.num_samples("val")
    table, evaluation = evaluate_table(
        state.model,
        shards,
        process=state.process,
        on_images=counting(on_progress, "table", total, epoch=state.config.epochs),
    )
    last = replace(record.epochs[-1], val_top1=evaluation.top1)
    record = replace(
        record,
        epochs=(*record.epochs[:-1], last),
        evaluation=evaluation,
        seconds=record.seconds + time.monotonic() - started,
    )
    if state.process.is_main:
        digest = digest_of(paths.last)
        table.save(paths.table, weights=digest)
        if evaluation.top1 >= best:
            write_file(paths.best, paths.last.read_bytes())
        record = replace(record, last=digest, best=digest_of(paths.best), before=())
        record.save(paths.record)
    wait_for_main(state.process)
    return record
