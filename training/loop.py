"""READ FIRST: fit() trains one run from shards to a record, train_step() is one step of it."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.durable import write_file
from pipeline.errors import ConfigError, DivergedError
from training import views
from training.checkpoint import load_initial
from training.config import DISTILLED, TRAINED, TrainConfig
from training.data import Batch, Shards
from training.distributed import Process, share_buffers, sum_over_ranks, wait_for_main
from training.evaluate import OnImages, count_images, evaluate_choice, evaluate_table
from training.model import StepOutput
from training.paths import RunPaths
from training.records import EpochRecord, RunRecord
from training.resume import load_last, open_record, save_epoch
from training.schedule import temperature
from training.selection import gumbel_noise
from training.trainer import Trainer, build_trainer

REPORT_STEPS = 10  # steps between looks at the loss, each of which waits for the device


class Progress(NamedTuple):
    """Where a run is.

    `stage` is `train`, `val`, `table`, `losses` or `fit`; `done` of `total` images, on all ranks.
    `loss` and `top1` (%) are means over the epoch so far, None outside training.
    """

    stage: str
    epoch: int
    done: int
    total: int
    loss: float | None = None
    top1: float | None = None


OnProgress = Callable[[Progress], None]
OnEpoch = Callable[[EpochRecord], None]


def train_step(trainer: Trainer, batch: Batch, *, step: int) -> StepOutput:
    """Take one step: augment, choose, classify, go down.

    Args:
        trainer: The run.
        batch: On the run's device.
        step: Counted from 0 over the whole run; chance depends on it and on the rank alone.
    """
    config, device, num_samples = trainer.config, batch.labels_B.device, len(batch.labels_B)
    seed = _step_seed(trainer, step)
    torch.manual_seed(seed)  # of dropout and stochastic depth inside the classifier
    generator = torch.Generator().manual_seed(seed)
    draws = views.draw(
        num_samples, hflip=config.hflip, vflip=config.vflip, shift=config.shift,
        generator=generator,
    )  # fmt: skip
    noise_BMK = gumbel_noise((num_samples, *trainer.model.noise_shape), generator)
    tau = temperature(config, step=step, total_steps=config.epochs * trainer.steps)
    chooses = step >= config.random_epochs * trainer.steps
    crops = views.cut(batch, trainer.plan, trainer.model.candidates)
    shown = views.augment(
        crops,
        batch.glimpses_BLSS,
        draws,
        trainer.counterparts,
        trainer.looked_counterparts,
        trainer.model.chosen_ahead(noise_BMK[:, 0], chooses=chooses),
    )

    with torch.autocast(device.type, torch.bfloat16, enabled=trainer.autocast):
        output: StepOutput = trainer.wrapped(
            shown.crops_BKHWC,
            shown.glimpses_BLSS,
            batch.labels_B,
            noise_BMK.to(device, non_blocking=True),
            tau,
            chooses=chooses,
        )
    output.loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(trainer.model.parameters(), config.clip_grad)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.scheduler.step()
    return output


def _step_seed(trainer: Trainer, step: int) -> int:
    entropy = (trainer.config.seed, step, trainer.process.rank)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def fit(
    config: TrainConfig,
    *,
    shards: Shards,
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
        The finished record, which is on disk as well.

    Raises:
        ConfigError: If the config does not fit the shards, or the run exists already.
        CheckpointError: If the run to resume is another one.
        DivergedError: If the loss stopped being a number; the last checkpoint stays.
    """
    if config.policy == DISTILLED:
        raise ConfigError(
            f"a training must have one of the policies {', '.join(TRAINED)}; got {DISTILLED}, "
            "which is fitted to a finished run. Use: srp-train distill RUN"
        )
    started = time.monotonic()
    record = open_record(config, shards=shards, paths=paths, process=process, resume=resume)
    if record.evaluation is not None:
        return record
    trainer = build_trainer(config, shards, process)
    best = 0.0
    if record.epochs:
        best = load_last(trainer, paths, record)
    elif config.initial_checkpoint:
        load_initial(Path(config.initial_checkpoint), trainer.model)
    before = record.seconds
    for epoch in range(len(record.epochs), config.epochs):
        done = _train_epoch(trainer, epoch, on_progress)
        is_last = epoch + 1 == config.epochs  # the last weights get the whole table instead
        if (epoch + 1) % config.val_interval == 0 and not is_last:
            done = replace(done, val_top1=_validate(trainer, shards, epoch, on_progress))
        record = replace(
            record,
            epochs=(*record.epochs, done),
            seconds=before + time.monotonic() - started,
        )
        best = save_epoch(trainer, paths, record, best)
        on_epoch(done)
    return _finish(trainer, shards, paths, record, best=best, on_progress=on_progress)


def _train_epoch(trainer: Trainer, epoch: int, on_progress: OnProgress) -> EpochRecord:
    trainer.model.train()
    process, batch_size = trainer.process, trainer.config.batch_size
    trainer.batches.load_state_dict({"epoch": epoch, "num_seen": 0})
    sums = torch.zeros(2, dtype=torch.float64, device=process.device)
    per_step = batch_size * process.world_size
    started = time.monotonic()
    for number, batch in enumerate(trainer.batches, start=1):
        output = train_step(trainer, batch, step=epoch * trainer.steps + number - 1)
        sums += torch.stack([output.losses_B.sum(), output.hits_B.sum()]).detach()
        if number % REPORT_STEPS == 0 or number == trainer.steps:
            so_far = sum_over_ranks(sums.clone(), process)  # all ranks stop together
            loss, top1 = _means(so_far, number * per_step, epoch=epoch, step=number)
            on_progress(
                Progress(
                    "train", epoch + 1, number * per_step, trainer.steps * per_step, loss, top1
                )
            )
    seconds = time.monotonic() - started
    total = sum_over_ranks(sums, process)
    loss, top1 = _means(total, trainer.steps * per_step, epoch=epoch, step=trainer.steps)
    share_buffers(trainer.model, process)
    _check_weights(trainer, epoch)
    return EpochRecord(
        epoch=epoch + 1,
        train_loss=loss,
        train_top1=top1,
        val_top1=None,
        images_per_s=trainer.steps * per_step / seconds,
        seconds=seconds,
    )


def _means(sums: Tensor, count: int, *, epoch: int, step: int) -> tuple[float, float]:
    """Give mean loss and top-1, and stop before a NaN can reach a checkpoint."""
    loss, hits = (sums / count).tolist()
    if not math.isfinite(loss):
        raise _diverged(f"the training loss must stay a number; got {loss}", epoch, step)
    return loss, 100 * hits


def _check_weights(trainer: Trainer, epoch: int) -> None:
    """Stop where an epoch's last step broke the weights, which no loss has shown yet."""
    for name, tensor in trainer.model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise _diverged(
                f"weights must stay numbers; got others in {name}", epoch, trainer.steps
            )


def _diverged(fault: str, epoch: int, step: int) -> DivergedError:
    return DivergedError(
        f"{fault} by step {step} of epoch {epoch + 1}. "
        "The checkpoint before it is kept. Train again under another --experiment with a lower "
        "--lr or with --clip-grad 1."
    )


def _validate(trainer: Trainer, shards: Shards, epoch: int, on_progress: OnProgress) -> float:
    total = shards.manifest.num_samples("val")
    return evaluate_choice(
        trainer.model,
        shards,
        process=trainer.process,
        on_images=counting(on_progress, "val", total, epoch=epoch + 1),
    )


def counting(on_progress: OnProgress, stage: str, total: int, *, epoch: int = 1) -> OnImages:
    """Turn numbers of images that have passed in a stage into where a run is."""
    return count_images(lambda done, of: on_progress(Progress(stage, epoch, done, of)), total)


def _finish(
    trainer: Trainer,
    shards: Shards,
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
        trainer.model,
        shards,
        process=trainer.process,
        on_images=counting(on_progress, "table", total, epoch=trainer.config.epochs),
    )
    last = replace(record.epochs[-1], val_top1=evaluation.top1)
    record = replace(
        record,
        epochs=(*record.epochs[:-1], last),
        evaluation=evaluation,
        seconds=record.seconds + time.monotonic() - started,
    )
    if trainer.process.is_main:
        table.save(paths.table)
        if evaluation.top1 >= best:
            write_file(paths.best, paths.last.read_bytes())
        record.save(paths.record)
    wait_for_main(trainer.process)
    return record
