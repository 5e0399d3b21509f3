"""READ FIRST: one run, from shards to a record: `fit`, `Training.run`, `epoch`; then `step.py`."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import DownloadError, PreemptedRunError, StoppedRunError
from pipeline.common.progress import SILENT, Progress
from training.config import TrainConfig
from training.data.processes import (
    Process,
    any_rank,
    gather_ranks,
    share_tensors,
    sum_over_ranks,
    wait_for_main,
)
from training.data.shards import BatchReader
from training.model.policies import POLICIES
from training.run.divergence import UncheckedStep, diverged, loss_fault
from training.run.load import load_teachers
from training.run.resume import load_last, open_record, save_run
from training.run.signals import InterruptedWaitError, Stop, noted_signals
from training.run.state import RunState, broken_weights, build_state, settled, with_choices
from training.run.step import set_train, train_step
from training.run.waiting import AwaitedBatches, interruptible
from training.run.watching import Watch, check_writers, watched
from training.saved.checkpoint import digest_of, load_initial
from training.saved.folder import RunPaths, written_run
from training.saved.record import EpochPart, RunRecord, run_options
from training.score.classify import Validation, classify_crops, counting, evaluate_choice
from training.score.metrics import summarise

CHECK_STEPS = 10  # steps between checks of the loss, each of which waits for the device


def fit(
    config: TrainConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    resume: bool = False,
    scored: bool = True,
    begin: "Begin | None" = None,
    stage: str = "training",
    progress: Progress = SILENT,
) -> RunRecord:
    """Train one run, or the rest of it, and evaluate its last weights on every crop.

    Args:
        config: What to train.
        shards: To train on.
        paths: Where the run's files go.
        process: This process among its peers.
        resume: Whether to continue from the run's last checkpoint, if it has one.
        scored: Whether to evaluate; without, the record stays open.
        begin: Trains what the first step begins with; None takes the seed's weights, or those of
            `initial_checkpoint`.
        stage: Name of the steps, for the progress.
        progress: Shows images and epochs.

    Returns:
        The record, which is on disk as well.

    Raises:
        ConfigError: If the config does not fit the shards, or the run exists already or is being
            written.
        CheckpointError: If the run to resume is another one.
        DivergedError: If the loss stopped being a number; the last checkpoint stays.
        StoppedRunError: If SIGTERM or Ctrl-C stopped the training; all steps are saved.
    """
    started = time.monotonic()
    config = settled(config, shards)
    check_writers(config)
    with written_run(paths, process):
        record = open_record(config, shards=shards, paths=paths, process=process, resume=resume)
        if record.evaluation is not None:
            return record
        since = started - record.seconds  # before `begin` adds its own
        has_start = begin or config.initial_checkpoint or paths.last.exists()
        if POLICIES[config.policy].is_fitted and not has_start:
            raise RuntimeError("a proposer that was not fitted; see training.choose.method")
        state = build_state(config, shards, process)
        state.model.teachers = load_teachers(config, shards, process)
        if process.is_main and not paths.last.exists():
            write_file(paths.options, run_options(record).encode())
        best, part = 0.0, None
        if paths.last.exists():
            best, part = load_last(state, paths, record)
        elif begin is not None:
            record = begin(state, record)
        elif config.initial_checkpoint:
            source = Path(config.initial_checkpoint)
            load_initial(source, state.model, with_proposer=config.holds_proposer)
        if config.chooses_ahead and len(record.epochs) < config.own_epochs:
            state = with_choices(state, shards)
        with watched(paths, record, process, progress, plan=shards.crop_layout) as watch:
            with noted_signals() as stop:
                training = Training(
                    state=state, shards=shards, paths=paths, record=record, best=best,
                    part=part or EpochPart(epoch=len(record.epochs)), since=since, stop=stop,
                    stage=stage, progress=progress, watch=watch,
                )  # fmt: skip
                training.run()
            return training.evaluate() if scored else training.record


Begin = Callable[[RunState, RunRecord], RunRecord]
"""Gives a new run's state the weights that it begins with; returns its record with the stages."""


@dataclass(kw_only=True)
class Training:
    """A run between its first step and its last.

    Attributes:
        state: What it holds in memory.
        shards: That it trains on.
        paths: Where its files go.
        record: Its finished epochs.
        best: Best validation accuracy so far, %.
        part: Finished steps of the unfinished epoch.
        since: Its start on the monotonic clock, as if it had never been interrupted.
        stop: Whether a signal asks to stop.
        stage: Name of its steps, for the progress.
        progress: Shows images and epochs.
        watch: Shows epochs to those who follow the run elsewhere.
    """

    state: RunState
    shards: ShardFolder
    paths: RunPaths
    record: RunRecord
    best: float
    part: EpochPart
    since: float
    stop: Stop
    stage: str
    progress: Progress
    watch: Watch

    def run(self) -> None:
        """Train the epochs that are left, and save after each."""
        config = self.state.config
        while len(self.record.epochs) < config.own_epochs:
            if lost := self.epoch():
                raise self._stopped_by(lost) from lost
            if self.part.step < self.state.steps:
                raise self._stopped()
            done = self.part.finished(self.state.images_per_step)
            # The last weights are scored on every crop instead.
            if done.epoch % config.val_interval == 0 and done.epoch < config.own_epochs:
                validation = self._validate()
                done = replace(done, val_top1=validation.top1)
                self.watch.validated(done.epoch, validation, self.state, self._val_reader)
            self.watch.trained(done, self.state)  # before it is saved: a resume shows it once
            self.record = replace(
                self.record, epochs=(*self.record.epochs, done), seconds=self._seconds()
            )
            self.best = save_run(self.state, self.paths, self.record, self.best)
            self.part = EpochPart(epoch=done.epoch)
            place = (self.stage, config.own_epochs)
            self.progress.event("epoch", done.line(*place), row=done.cells(*place), **asdict(done))
            if any_rank(bool(self.stop.wanted), self.state.process):
                raise self._stopped()

    def epoch(self) -> DownloadError | None:
        """Take the steps of the epoch that are left, to its end or to a stop between two steps.

        Returns:
            Why it ended early, if the shards cannot be fetched any more.

        Raises:
            DivergedError: If a loss or a weight stopped being a number.
        """
        state, begun, process = self.state, self.part, self.state.process
        set_train(state)
        sums = torch.tensor(
            begun.sums_of(process.rank, process.world_size),
            dtype=torch.float64,
            device=process.device,
        )
        seen = begun.step * state.images_per_step
        state.batches.load_state_dict({"epoch": begun.epoch, "num_seen": seen})
        unchecked: list[UncheckedStep] = []
        started, step = time.monotonic(), begun.step
        rest = state.batches if begun.step < state.steps else ()
        batches = AwaitedBatches(rest, self.stop, process)
        for step, batch in enumerate(batches, start=begun.step + 1):
            output = train_step(state, batch, step=begun.epoch * state.steps + step - 1)
            sums += torch.stack([output.losses_B.sum(), output.hits_B.sum()]).detach()
            unchecked.append(UncheckedStep(step, batch.indices_B, output.losses_B.detach()))
            is_last = step == state.steps
            is_stopped_alone = self.stop.wanted and process.world_size == 1
            if step % CHECK_STEPS and not is_last and not is_stopped_alone:
                continue
            if self._check(step, sums, unchecked) and not is_last:
                break
        if unchecked:  # alone, while it waited, the process was stopped or lost the shards
            self._check(step, sums, unchecked)
        # Running means of batch norms differ by rank; evaluation must use those that are saved.
        share_tensors((*state.model.buffers(), *state.scored.buffers()), process)
        if name := broken_weights(state.model):
            fault = f"weights must stay finite; got NaN or infinity in {name}"
            raise diverged(fault, begun.epoch, step)
        self.part = EpochPart(
            epoch=begun.epoch,
            step=step,
            sums=tuple((float(loss), float(hits)) for loss, hits in gather_ranks(sums, process)),
            seconds=begun.seconds + time.monotonic() - started,
            waited_s=begun.waited_s + batches.waited_s,
        )
        return batches.lost

    def _check(self, step: int, sums: Tensor, unchecked: list[UncheckedStep]) -> bool:
        """Check the losses since the last check, and show the epoch so far.

        Returns:
            Whether a signal asks to stop, on any rank.

        Raises:
            DivergedError: If a loss is not finite.
        """
        flagged = torch.cat([sums, sums.new_tensor([bool(self.stop.wanted)])])
        loss, hits, wanted = sum_over_ranks(flagged, self.state.process).tolist()
        if not math.isfinite(loss):
            raise loss_fault(unchecked, state=self.state, paths=self.paths, epoch=self.part.epoch)
        unchecked.clear()
        self._show(step, loss, hits)
        return bool(wanted)

    def evaluate(self) -> RunRecord:
        """Evaluate the last weights on every crop, and close the record."""
        state, paths = self.state, self.paths
        logits = classify_crops(
            state.scored, self.shards, process=state.process, reader=self._val_reader,
            progress=self.progress,
        )  # fmt: skip
        evaluation = summarise(logits, state.scored)
        last = replace(self.record.epochs[-1], val_top1=evaluation.top1)
        self.watch.validated(last.epoch, evaluation, state, self._val_reader)
        self.record = replace(
            self.record,
            epochs=(*self.record.epochs[:-1], last),
            evaluation=evaluation,
            seconds=self._seconds(),
        )
        if state.process.is_main:
            digest = digest_of(paths.last)
            logits.save(paths.logits, weights=(digest,))
            if evaluation.top1 >= self.best:
                write_file(paths.best, paths.last.read_bytes())
            self.record = replace(self.record, last=digest, best=digest_of(paths.best), before=())
            self.record.save(paths.record)
        wait_for_main(state.process)
        return self.record

    @cached_property
    def _val_reader(self) -> BatchReader:
        """Read the validation split, whose samples are checked in the first validation alone."""
        return self.state.model.reader(self.shards, "val", self.state.process)

    def _validate(self) -> Validation:
        """Score the policy on the validation split, unless a signal interrupts it."""
        process, shards = self.state.process, self.shards
        counter = counting(self.progress, "validating", shards.manifest.num_samples("val"))

        def check_stop() -> None:
            # Several processes validate to the end, since each waits for the others' figures.
            if self.stop.wanted and process.world_size == 1:
                raise InterruptedWaitError

        def on_images(num_images: int) -> None:
            check_stop()
            counter(num_images)

        awaited = partial(interruptible, stop=self.stop, process=process)
        try:
            check_stop()
            return evaluate_choice(
                self.state.scored, shards, process=process, on_images=on_images,
                reader=self._val_reader, awaited=awaited,
            )  # fmt: skip
        except InterruptedWaitError:
            raise self._stopped() from None
        except DownloadError as lost:
            if process.world_size > 1:
                raise
            raise self._stopped_by(lost) from lost

    def _show(self, step: int, loss: float, hits: float) -> None:
        """Show the mean loss and accuracy of the epoch so far."""
        state, epoch, num_images = self.state, self.part.epoch, step * self.state.images_per_step
        whole = state.steps * state.images_per_step
        self.progress.update(
            self.stage,
            epoch * whole + num_images,
            state.config.own_epochs * whole,
            f"epoch {epoch + 1}/{state.config.own_epochs}, loss {loss / num_images:.3f}, "
            f"top-1 {100 * hits / num_images:.1f} %",
        )

    def _seconds(self) -> float:
        return time.monotonic() - self.since

    def _stopped(self) -> StoppedRunError:
        """Save what is done, and say where."""
        self.record = replace(self.record, seconds=self._seconds())
        if self.part.step:
            save_run(self.state, self.paths, self.record, self.best, part=self.part)
        where = f"step {self.part.step} of " if self.part.step else "the end of "
        epoch = self.part.epoch + bool(self.part.step)
        place = f"at {where}epoch {epoch}, and saved," if epoch else "before the first step,"
        kind = StoppedRunError if self.stop.wanted == signal.SIGINT else PreemptedRunError
        return kind(f"stopped {place} in {self.paths.folder}.")

    def _stopped_by(self, lost: DownloadError) -> DownloadError:
        """Save what is done where the shards cannot be fetched any more, and say where."""
        return DownloadError(f"{lost} Then continue with --resume: training {self._stopped()}")
