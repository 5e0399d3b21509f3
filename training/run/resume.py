"""Start a run, save it, and continue it exactly where its last checkpoint left it."""

from dataclasses import replace
from pathlib import Path

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.checksum import read_sha256
from pipeline.common.errors import ConfigError
from training.config import SPLIT_FIELDS, TrainConfig
from training.data.processes import Process, wait_for_main
from training.run.state import RunState, division
from training.saved.checkpoint import (
    DIGEST,
    RAW,
    CheckpointMeta,
    check_fits,
    check_own,
    checkpoint_of,
    digest_of,
    load_optimizer,
    load_weights,
    pack_checkpoint,
    read_meta,
)
from training.saved.folder import RunPaths
from training.saved.record import (
    CacheRecord,
    DataRecord,
    EpochPart,
    RunRecord,
    changed_options,
    current_commit,
    describe_hardware,
    load_record,
)


def open_record(
    config: TrainConfig, *, shards: ShardFolder, paths: RunPaths, process: Process, resume: bool
) -> RunRecord:
    """Start a run's record, or read the one to resume.

    Raises:
        ConfigError: If there is a run that is not to be resumed.
        CheckpointError: If what is there belongs to another run, or is damaged.
    """
    is_begun = paths.last.exists() or paths.fold(0).last.exists()
    if is_begun and not resume:
        raise ConfigError(
            f"a run must not be overwritten; got one in {paths.folder} already. "
            "Add --resume to go on with it, or name another --experiment."
        )
    if paths.last.exists():
        meta = read_meta(paths.last)
        check_fits(meta, shards.manifest, shards.place)
        record = load_record(paths.record)
        _check_same(record, config, shards=shards, paths=paths, process=process)
        check_own(paths.last, meta, record)
        if paths.best.exists():  # or the next record would name it, though it is another run's
            check_own(paths.best, read_meta(paths.best), record)
        # A kill between the two files leaves a record with an epoch that was not saved.
        record = replace(record, epochs=record.epochs[: meta.epoch])
        return record if record.evaluation else _divided_anew(record, config, process)
    if is_begun and paths.record.exists():
        record = load_record(paths.record)
        if not record.epochs:  # it was stopped in a stage before its own epochs
            _check_same(record, config, shards=shards, paths=paths, process=process)
            return _divided_anew(record, config, process)
    return RunRecord(
        name=paths.folder.name,
        config=config,
        data=DataRecord.of(shards.manifest),
        shards=shards.place,
        cache=CacheRecord.of(shards),
        window_mib=shards.window_mib("train"),
        teachers=_teachers(config),
        commit=current_commit(),
        hardware=describe_hardware(process.device),
        world_size=process.world_size,
        epochs=(),
        evaluation=None,
        seconds=0.0,
    )


def _check_same(
    record: RunRecord, config: TrainConfig, *, shards: ShardFolder, paths: RunPaths,
    process: Process,
) -> None:  # fmt: skip
    is_open = record.evaluation is None
    changed = [
        f"{option} {there} there, {asked} asked for"
        for option, there, asked in changed_options(
            record.config, config, but=SPLIT_FIELDS if is_open else ()
        )
    ]
    if record.data.fingerprint != shards.manifest.fingerprint:
        changed.append(f"shards of other images or options in {shards.place}")
    window_mib = shards.window_mib("train")
    if is_open and record.window_mib != window_mib:
        changed.append(
            f"an order {_order(record.window_mib)} there, {_order(window_mib)} by --cache-mib now"
        )
    if is_open and record.teachers != _teachers(config):
        changed.append("other weights of a --kd-model than those that it began with")
    if is_open and record.images_per_step != config.images_per_rank * process.world_size:
        changed.append(
            f"{record.images_per_step} images a step there, by "
            f"{division(record.config, record.world_size)}, and "
            f"{division(config, process.world_size)} now"
        )
    if changed:
        raise ConfigError(
            f"--resume must go on with the run's own options; got {'; '.join(changed)} in "
            f"{paths.folder}. Use the run's options, or name another --experiment."
        )


def _teachers(config: TrainConfig) -> tuple[str, ...]:
    return tuple(digest_of(checkpoint_of(Path(each))) for each in config.kd_model)


def _divided_anew(record: RunRecord, config: TrainConfig, process: Process) -> RunRecord:
    """Note how a step's images are divided from now on; they are the same images."""
    divided = {name: getattr(config, name) for name in SPLIT_FIELDS}
    return replace(record, config=replace(record.config, **divided), world_size=process.world_size)


def _order(window_mib: float | None) -> str:
    return "of all shards" if window_mib is None else f"in windows of {window_mib:g} MiB"


def load_last(
    state: RunState, paths: RunPaths, record: RunRecord
) -> tuple[float, EpochPart | None]:
    """Load the last checkpoint; returns the best validation accuracy and the unfinished epoch."""
    meta = read_meta(paths.last)
    load_optimizer(paths.last, state.model, state.optimizer, state.scheduler)
    load_weights(paths.last, state.scored)
    if state.average is not None:
        load_weights(paths.last, state.model, RAW)
    if meta.epoch != len(record.epochs):
        raise ConfigError(
            f"a run's record and checkpoint must agree; got {len(record.epochs)} and "
            f"{meta.epoch} epochs in {paths.folder}. Delete the folder and train it again."
        )
    return meta.best_top1, meta.part


def save_run(
    state: RunState,
    paths: RunPaths,
    record: RunRecord,
    best: float,
    *,
    part: EpochPart | None = None,
) -> float:
    """Write a record, then its checkpoint, after an epoch or in one.

    Args:
        state: What is saved.
        paths: Where the files go.
        record: Its finished epochs.
        best: Best validation accuracy before this save, %.
        part: Steps of an unfinished epoch; None at the end of one.

    Returns:
        The best validation accuracy.
    """
    top1 = record.epochs[-1].val_top1 if part is None else None
    is_best = top1 is not None and top1 >= best
    best = max(best, top1 or 0.0)
    if state.process.is_main:
        meta = CheckpointMeta(
            config=state.config,
            spec=record.data.spec,
            classes=record.data.classes,
            epoch=len(record.epochs),
            best_top1=best,
            part=part,
            fingerprint=record.data.fingerprint,
            class_names=record.data.class_names,
        )
        data = pack_checkpoint(
            meta,
            model=state.model,
            average=state.average,
            optimizer=state.optimizer,
            scheduler=state.scheduler,
        )
        written = (paths.best, paths.last) if is_best else (paths.last,)
        _name(record, paths, data, written=written).save(paths.record)
        for path in written:
            write_file(path, data)
    wait_for_main(state.process)
    return best


def _name(
    record: RunRecord, paths: RunPaths, data: bytes, *, written: tuple[Path, ...]
) -> RunRecord:
    """Name the checkpoints that are about to be written, and those that lie there until then."""
    there = {path: digest_of(path) for path in (paths.last, paths.best)}
    new = there | dict.fromkeys(written, read_sha256(data, DIGEST))
    before = tuple(sorted({*there.values()} - {*new.values(), ""}))
    return replace(record, last=new[paths.last], best=new[paths.best], before=before)
