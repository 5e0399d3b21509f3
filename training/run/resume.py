"""Start a run, or go on with one exactly where its last checkpoint left it."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pipeline import ShardFolder
from pipeline.common.atomic_io import named_output, require_folder, write_file
from pipeline.common.checksum import read_sha256
from pipeline.common.errors import ConfigError, EveryRankError
from pipeline.common.file_lock import writer_lock
from training.config import TrainConfig, changed_options
from training.data.processes import Process, sum_over_ranks, wait_for_main
from training.model.policies import POLICIES, TRAINED
from training.run.checkpoint import (
    DIGEST,
    CheckpointMeta,
    check_fits,
    check_own,
    digest_of,
    load_optimizer,
    load_weights,
    pack_checkpoint,
    read_meta,
)
from training.run.folder import RunPaths
from training.run.record import (
    DataRecord,
    EpochPart,
    RunRecord,
    current_commit,
    describe_hardware,
    load_record,
)
from training.run.state import RunState


@contextlib.contextmanager
def written_run(paths: RunPaths, process: Process) -> Iterator[None]:
    """Hold a run's folder, unless the run is finished: then it is only read.

    Raises:
        ConfigError: If another trainer holds it; names it.
        CheckpointError: If the run's record is damaged.
    """
    with named_output(paths.folder, "--output"):
        is_begun = paths.last.exists() and paths.record.exists()
    is_finished = is_begun and load_record(paths.record).evaluation is not None
    with contextlib.nullcontext() if is_finished else held_run(paths, process):
        yield


@contextlib.contextmanager
def held_run(paths: RunPaths, process: Process, *, option: str = "--output") -> Iterator[None]:
    """Keep other trainers out of a run's folder; rank 0 does so for its peers.

    Args:
        paths: Of the run.
        process: This one among its peers.
        option: That named the folder.

    Raises:
        ConfigError: If another trainer holds it, which is named, or it cannot be written.
    """
    fault: ConfigError | OSError | None = None
    with contextlib.ExitStack() as stack:
        if process.is_main:
            try:
                stack.enter_context(_held(paths, option))
            except (ConfigError, OSError) as error:
                fault = error
        faults = torch.tensor([fault is not None], dtype=torch.int64, device=process.device)
        if sum_over_ranks(faults, process):
            raise fault or EveryRankError(
                f"rank 0 must hold a run's folder; got one that it cannot hold, {paths.folder}. "
                "It says why."
            )
        yield


@contextlib.contextmanager
def _held(paths: RunPaths, option: str) -> Iterator[None]:
    is_new = not paths.folder.exists()
    require_folder(paths.folder, option)
    with writer_lock(
        paths.folder, paths.holder, rule="a run must have one trainer at a time",
        fix="Wait for it to end, or name another --experiment or --output.",
    ):  # fmt: skip
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # what went wrong before counts more
                paths.holder.unlink(missing_ok=True)
                if is_new:
                    paths.folder.rmdir()  # unless files are in it


def open_record(
    config: TrainConfig, *, shards: ShardFolder, paths: RunPaths, process: Process, resume: bool
) -> RunRecord:
    """Start a record, or take up the one that is there.

    Raises:
        ConfigError: If there is one and it is not to be resumed, or the policy trains nothing.
        CheckpointError: If the one that is there is of another run, or damaged.
    """
    if POLICIES[config.policy].is_fitted:
        raise ConfigError(
            f"a training must have one of the policies {', '.join(TRAINED)}; got {config.policy}, "
            "which is fitted to a finished run. Use: srp-train distill RUN"
        )
    if paths.last.exists():
        if not resume:
            raise ConfigError(
                f"a run must not be overwritten; got one in {paths.folder} already. "
                "Add --resume to go on with it, or name another --experiment."
            )
        meta = read_meta(paths.last)
        check_fits(meta, shards.manifest, shards.path)
        record = load_record(paths.record)
        _check_same(record, config, shards=shards, paths=paths, process=process)
        check_own(paths.last, meta, record)
        if paths.best.exists():  # or the next record would name it, though it is of another run
            check_own(paths.best, read_meta(paths.best), record)
        # A run that was killed between the two files has told of an epoch that it did not save.
        return replace(record, epochs=record.epochs[: meta.epoch])
    return RunRecord(
        name=paths.folder.name,
        config=config,
        data=DataRecord.of(shards.manifest),
        shards=str(shards.path),
        commit=current_commit(),
        hardware=describe_hardware(process.device),
        world_size=process.world_size,
        epochs=(),
        evaluation=None,
        seconds=0.0,
    )


def _check_same(
    record: RunRecord,
    config: TrainConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
) -> None:
    changed = [
        f"{option} {there} there, {asked} asked for"
        for option, there, asked in changed_options(record.config, config)
    ]
    if record.data.fingerprint != shards.manifest.fingerprint:
        changed.append(f"shards of other images or options in {shards.path}")
    if record.evaluation is None and record.world_size != process.world_size:
        changed.append(f"{record.world_size} processes there, {process.world_size} now")
    if changed:
        raise ConfigError(
            f"--resume must go on with the run's own options; got {'; '.join(changed)} in "
            f"{paths.folder}. Use the run's options, or name another --experiment."
        )


def load_last(
    state: RunState, paths: RunPaths, record: RunRecord
) -> tuple[float, EpochPart | None]:
    """Take up the last checkpoint; gives the best validation accuracy, and the epoch in hand."""
    meta = read_meta(paths.last)
    load_weights(paths.last, state.model)
    load_optimizer(paths.last, state.optimizer, state.scheduler)
    if meta.epoch != len(record.epochs):
        raise ConfigError(
            f"a run's record and checkpoint must agree; got {len(record.epochs)} and "
            f"{meta.epoch} epochs in {paths.folder}. Delete the folder and train it again."
        )
    return meta.best_top1, meta.part


def save_epoch(state: RunState, paths: RunPaths, record: RunRecord, best: float) -> float:
    """Write record and checkpoints after an epoch; gives the best accuracy so far."""
    top1 = record.epochs[-1].val_top1
    is_best = top1 is not None and top1 >= best
    best = max(best, top1 or 0.0)
    written = (paths.best, paths.last) if is_best else (paths.last,)
    _save(state, paths, record, best, written=written)
    return best


def save_part(
    state: RunState, paths: RunPaths, record: RunRecord, best: float, part: EpochPart
) -> None:
    """Write record and checkpoint between two steps of an epoch."""
    _save(state, paths, record, best, part=part, written=(paths.last,))


def _save(
    state: RunState,
    paths: RunPaths,
    record: RunRecord,
    best: float,
    *,
    part: EpochPart | None = None,
    written: tuple[Path, ...],
) -> None:
    if state.process.is_main:
        meta = CheckpointMeta(
            config=state.config,
            spec=record.data.spec,
            classes=record.data.classes,
            epoch=len(record.epochs),
            best_top1=best,
            part=part,
            fingerprint=record.data.fingerprint,
        )
        data = pack_checkpoint(
            meta, model=state.model, optimizer=state.optimizer, scheduler=state.scheduler
        )
        _name(record, paths, data, written=written).save(paths.record)
        for path in written:
            write_file(path, data)
    wait_for_main(state.process)


def _name(
    record: RunRecord, paths: RunPaths, data: bytes, *, written: tuple[Path, ...]
) -> RunRecord:
    """Name the checkpoints that are about to be written, and those that lie there until then."""
    there = {path: digest_of(path) for path in (paths.last, paths.best)}
    new = there | dict.fromkeys(written, read_sha256(data, DIGEST))
    before = tuple(sorted({*there.values()} - {*new.values(), ""}))
    return replace(record, last=new[paths.last], best=new[paths.best], before=before)
