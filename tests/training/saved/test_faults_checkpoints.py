"""A crash while saving, a flipped bit, a pickle: the last good state stays, and nothing runs."""

import io
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from breaking import forked, kill_at, stepped
from safetensors.torch import load
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import CheckpointError
from pipeline.common.progress import Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.run.resume import open_record, save_run
from training.run.state import RunState, build_state
from training.saved.checkpoint import load_initial, load_optimizer, load_weights, read_meta
from training.saved.folder import RunPaths
from training.saved.record import EpochRecord, RunRecord, load_record
from training.score.crop_logits import CropLogits

Tiny = Callable[..., TrainConfig]
Train = Callable[..., RunRecord]
EPOCH = EpochRecord(
    epoch=1, train_loss=2.0, train_top1=10.0, val_top1=11.0, images_per_s=1.0, seconds=1.0
)


def survived(work: Callable[[], object], at: int) -> bool:
    """Do work in a child that is killed at an operation; says whether it came to its end."""

    def do() -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive the fork
        signal.alarm(60)
        with stepped(kill_at(at)):
            work()

    status = forked(do)
    assert status in (0, -signal.SIGKILL)
    return status == 0


def tensors_of(path: Path) -> dict[str, Tensor]:
    return load(path.read_bytes())


@pytest.fixture
def saved(
    opened: ShardFolder, alone: Process, tiny: Tiny, tmp_path: Path
) -> tuple[RunState, RunPaths, RunRecord]:
    """A run with one epoch on the disk, and other weights in memory."""
    config, paths = tiny(epochs=3), RunPaths(folder=tmp_path / "run")
    state = build_state(config, opened, alone)
    record = open_record(config, shards=opened, paths=paths, process=alone, resume=False)
    paths.folder.mkdir()
    record = replace(record, epochs=(EPOCH,))
    save_run(state, paths, record, 0.0)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter += 1
    return state, paths, replace(record, epochs=(EPOCH, replace(EPOCH, epoch=2, val_top1=12.0)))


@pytest.mark.sweep
def test_a_kill_at_any_write_fsync_or_rename_of_a_save_leaves_a_whole_checkpoint(
    saved: tuple[RunState, RunPaths, RunRecord],
    opened: ShardFolder,
    alone: Process,
) -> None:
    state, paths, record = saved
    files = (paths.record, paths.best, paths.last)
    before = {path: path.read_bytes() for path in files}
    epochs, at = [], 0
    while True:
        at += 1
        for path, data in before.items():
            path.write_bytes(data)
        is_over = survived(partial(save_run, state, paths, record, 11.0), at)
        meta, found = read_meta(paths.last), load_record(paths.record)
        assert meta.epoch <= len(found.epochs)  # or the epoch would have no record
        for path in (paths.last, paths.best):
            fresh = build_state(state.config, opened, alone)
            load_weights(path, fresh.model)
            load_optimizer(path, fresh.model, fresh.optimizer, fresh.scheduler)
        resumed = open_record(state.config, shards=opened, paths=paths, process=alone, resume=True)
        assert len(resumed.epochs) == meta.epoch
        epochs.append(meta.epoch)
        for aside in paths.folder.glob(".*.partial"):
            aside.unlink()
        if is_over:
            break
    assert at > 15
    assert epochs == sorted(epochs)  # the old one, then the new one
    assert set(epochs) == {1, 2}


@pytest.mark.sweep  # a process for each write
def test_a_kill_at_any_write_of_what_ends_a_run_is_made_good_by_the_same_command(
    opened: ShardFolder, alone: Process, tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    config, whole = tiny(), RunPaths(folder=tmp_path / "whole")
    expected = train(config, whole.folder)
    trained = RunPaths(folder=tmp_path / "trained")

    class Stop(Progress):
        def update(self, stage: str, *_: object) -> None:
            if stage == "scoring every crop":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, trained.folder, progress=Stop())
    assert load_record(trained.record).evaluation is None
    at, is_over = 0, False
    while not is_over:
        at += 1
        paths = RunPaths(folder=tmp_path / str(at))
        shutil.copytree(trained.folder, paths.folder)
        is_over = survived(partial(train, config, paths.folder, resume=True), at)
        resumed = train(config, paths.folder, resume=True)
        assert resumed.evaluation == expected.evaluation
        for file in ("best", "last", "logits"):
            found, known = (tensors_of(getattr(run, file)) for run in (paths, whole))
            assert all(torch.equal(tensor, found[name]) for name, tensor in known.items())
    assert at > 12


def test_a_bit_that_flips_anywhere_in_a_checkpoint_is_found(
    saved: tuple[RunState, RunPaths, RunRecord],
) -> None:
    state, paths, _ = saved
    data, before = paths.last.read_bytes(), tensors_of(paths.last)
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    found = 0
    positions = [*rng.integers(0, header, 150), *rng.integers(header, len(data), 50)]
    for position in map(int, positions):
        flipped = bytes([data[position] ^ 1 << int(rng.integers(8))])
        paths.last.write_bytes(data[:position] + flipped + data[position + 1 :])
        if is_refused(paths.last, state):
            found += 1
        else:  # the name of the digest's own field was hit, and nothing else
            after = tensors_of(paths.last)
            assert read_meta(paths.last).epoch == 1
            assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert found >= len(positions) - 3


def is_refused(path: Path, state: RunState) -> bool:
    try:
        read_meta(path)
        load_weights(path, state.model)
    except CheckpointError:
        return True
    return False


class Canary:
    """What runs where somebody unpickles."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickles(canary: Path) -> Iterator[bytes]:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        buffer = io.BytesIO()
        torch.save({"model": Canary(canary)}, buffer, **options)
        yield buffer.getvalue()
    yield pickle.dumps(Canary(canary))


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused_and_does_not_run(
    saved: tuple[RunState, RunPaths, RunRecord], tmp_path: Path
) -> None:
    state, paths, _ = saved
    canary = tmp_path / "ran"
    readers: list[Callable[[Path], object]] = [
        read_meta,
        lambda path: load_weights(path, state.model),
        lambda path: load_initial(path, state.model),
        lambda path: load_optimizer(path, state.model, state.optimizer, state.scheduler),
        CropLogits.load,
    ]
    for data in pickles(canary):
        paths.last.write_bytes(data)
        for read in readers:
            with pytest.raises(CheckpointError):
                read(paths.last)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))  # noqa: S301
    assert canary.exists()  # so it would have been seen
