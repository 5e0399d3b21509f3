"""READ FIRST: fit() trains one run from shards to a record, train_step() is one step of it."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.durable import write_file
from pipeline.errors import ConfigError, DivergedError
from training import views
from training.checkpoint import (
    CheckpointMeta,
    check_fits,
    load_optimizer,
    load_weights,
    read_meta,
    save_checkpoint,
)
from training.config import RunPaths, TrainConfig
from training.data import Batch, Shards, training_batches
from training.distributed import Process, share_buffers, sum_over_ranks, wait_for_main
from training.evaluate import OnImages, evaluate_choice, evaluate_table
from training.model import StepOutput
from training.records import (
    DataRecord,
    EpochRecord,
    RunRecord,
    current_commit,
    describe_hardware,
    load_record,
)
from training.schedule import temperature
from training.selection import gumbel_noise
from training.trainer import Trainer, build_trainer

REPORT_STEPS = 10  # steps between looks at the loss, each of which waits for the device


class Progress(NamedTuple):
    """Where a run is.

    `stage` is `train`, `val` or `table`; `done` of `total` images, on all ranks. `loss` and
    `top1` (%) are means over the epoch so far, None outside training.
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
    """Take one step: mirror, choose, shift, classify, go down.

    Args:
        trainer: The run.
        batch: On the run's device.
        step: Counted from 0 over the whole run; chance depends on it and on the rank alone.
    """
    config, device, num_samples = trainer.config, batch.labels_B.device, len(batch.labels_B)
    generator = torch.Generator().manual_seed(_step_seed(trainer, step))
    draws = views.draw(num_samples, hflip=config.hflip, shift=config.shift, generator=generator)
    noise_BMK = gumbel_noise((num_samples, *trainer.model.noise_shape), generator)
    tau = temperature(config, step=step, total_steps=config.epochs * trainer.steps)
    batch = views.mirror(batch, draws.flips_B, trainer.counterparts)

    with torch.autocast(device.type, torch.bfloat16, enabled=trainer.autocast):
        output: StepOutput = trainer.wrapped(
            batch.crops_BKHWC,
            batch.glimpses_BKSS,
            batch.labels_B,
            draws,
            noise_BMK.to(device, non_blocking=True),
            tau,
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
    started = time.monotonic()
    record = _open_record(config, shards=shards, paths=paths, process=process, resume=resume)
    if record.evaluation is not None:
        return record
    trainer = build_trainer(config, shards, process)
    best = _load_last(trainer, paths, record) if record.epochs else 0.0
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
        best = _save(trainer, paths, record, best)
        on_epoch(done)
    return _finish(trainer, shards, paths, record, best=best, on_progress=on_progress)


def _open_record(
    config: TrainConfig, *, shards: Shards, paths: RunPaths, process: Process, resume: bool
) -> RunRecord:
    """Start a record, or take up the one that is there."""
    if paths.last.exists():
        if not resume:
            raise ConfigError(
                f"a run must not be overwritten; got one in {paths.folder} already. "
                "Add --resume to go on with it, or name another --experiment."
            )
        meta = read_meta(paths.last)
        check_fits(meta, shards.manifest, shards.folder)
        record = load_record(paths.record)
        _check_same(record, config, shards=shards, paths=paths, process=process)
        # A run that was killed between the two files has told of an epoch that it did not save.
        return replace(record, epochs=record.epochs[: meta.epoch])
    if process.is_main:
        paths.folder.mkdir(parents=True, exist_ok=True)
    return RunRecord(
        name=paths.folder.name,
        config=config,
        data=DataRecord.of(shards.manifest),
        shards=str(shards.folder),
        commit=current_commit(),
        hardware=describe_hardware(process.device),
        world_size=process.world_size,
        epochs=(),
        evaluation=None,
        seconds=0.0,
    )


def _check_same(
    record: RunRecord, config: TrainConfig, *, shards: Shards, paths: RunPaths, process: Process
) -> None:
    free = ("workers", "device")  # these change no figure but the speed
    changed = [
        f"--{name.replace('_', '-')} {getattr(record.config, name)} there, {value} asked for"
        for name, value in vars(config).items()
        if name not in free and getattr(record.config, name) != value
    ]
    if record.data.fingerprint != shards.manifest.fingerprint:
        changed.append(f"shards of other images or options in {shards.folder}")
    if record.evaluation is None and record.world_size != process.world_size:
        changed.append(f"{record.world_size} processes there, {process.world_size} now")
    if changed:
        raise ConfigError(
            f"--resume must go on with the run's own options; got {'; '.join(changed)} in "
            f"{paths.folder}. Use the run's options, or name another --experiment."
        )


def _load_last(trainer: Trainer, paths: RunPaths, record: RunRecord) -> float:
    """Take up the last checkpoint; gives the best validation accuracy so far."""
    meta = read_meta(paths.last)
    load_weights(paths.last, trainer.model)
    load_optimizer(paths.last, trainer.optimizer, trainer.scheduler)
    if meta.epoch != len(record.epochs):
        raise ConfigError(
            f"a run's record and checkpoint must agree; got {len(record.epochs)} and "
            f"{meta.epoch} epochs in {paths.folder}. Delete the folder and train it again."
        )
    return meta.best_top1


def _train_epoch(trainer: Trainer, epoch: int, on_progress: OnProgress) -> EpochRecord:
    trainer.model.train()
    process, batch_size = trainer.process, trainer.config.batch_size
    batches = training_batches(
        len(trainer.train_reader.reader),
        batch_size=batch_size,
        seed=trainer.config.seed,
        epoch=epoch,
        process=process,
    )
    sums = torch.zeros(2, dtype=torch.float64, device=process.device)
    per_step = batch_size * process.world_size
    started = time.monotonic()
    for number, batch in enumerate(trainer.train_reader.batches(batches), start=1):
        output = train_step(
            trainer, batch.to(process.device), step=epoch * trainer.steps + number - 1
        )
        sums += torch.stack([output.losses_B.detach().sum(), output.hits_B.sum()])
        if number % REPORT_STEPS == 0 or number == trainer.steps:
            loss, top1 = _means(sums, number * batch_size, epoch=epoch, step=number)
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
        "The checkpoint before it is kept; lower --lr or add --clip-grad 1."
    )


def _validate(trainer: Trainer, shards: Shards, epoch: int, on_progress: OnProgress) -> float:
    total = shards.manifest.num_samples("val")
    return evaluate_choice(
        trainer.model,
        shards,
        process=trainer.process,
        on_images=_counting(on_progress, "val", epoch + 1, total),
    )


def _counting(on_progress: OnProgress, stage: str, epoch: int, total: int) -> OnImages:
    seen = 0

    def report(num_images: int) -> None:
        nonlocal seen
        seen = min(total, seen + num_images)
        on_progress(Progress(stage, epoch, seen, total))

    return report


def _save(trainer: Trainer, paths: RunPaths, record: RunRecord, best: float) -> float:
    """Write record and checkpoints after an epoch; gives the best accuracy so far."""
    top1 = record.epochs[-1].val_top1
    is_best = top1 is not None and top1 >= best
    best = max(best, top1 or 0.0)
    if trainer.process.is_main:
        meta = CheckpointMeta(
            config=trainer.config,
            spec=record.data.spec,
            classes=record.data.classes,
            epoch=len(record.epochs),
            best_top1=best,
        )
        record.save(paths.record)
        for path in (paths.best, paths.last) if is_best else (paths.last,):
            save_checkpoint(
                path,
                meta,
                model=trainer.model,
                optimizer=trainer.optimizer,
                scheduler=trainer.scheduler,
            )
    wait_for_main(trainer.process)
    return best


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
        on_images=_counting(on_progress, "table", trainer.config.epochs, total),
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
