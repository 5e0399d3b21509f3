"""Faults: two trainers in one folder, and what is of another run in one."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from warm import Program, WarmPython

from pipeline import ShardFolder
from pipeline.common.errors import CheckpointError, ConfigError
from pipeline.common.progress import Progress
from training.audit.config import HeadroomConfig
from training.audit.headroom import work_folder
from training.choose.config import DistillConfig
from training.choose.distill import distill
from training.config import TrainConfig
from training.data.processes import Process
from training.saved.checkpoint import check_own, digest_of, read_meta
from training.saved.folder import RunPaths, held_run
from training.saved.record import RunRecord, load_record

HERE = socket.gethostname()
QUICK = (
    *("--model", "test_resnet", "--epochs", "1", "-b", "16", "-j", "1", "--no-amp"),
    *("--device", "cpu", "--policy", "centre"),
)
SrpTrain = Callable[..., Result]


def last_line(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.count("error: ") == 1
    return result.stderr.splitlines()[-1]


def told(folder: Path, pid: int) -> str:
    """Give the beginning of what a second trainer is told."""
    return (
        f"error: a run must have one trainer at a time; got {folder}, which process {pid} on "
        f"{HERE} has been writing since 20"
    )


FIX = ". Wait for it to end, or name another --experiment or --output."


@contextmanager
def stopped_trainer(python: WarmPython, shards: Path, output: Path, seed: int) -> Iterator[Program]:
    """Train in a process of its own, which is stopped as soon as it holds its run's folder."""
    words = ("-m", "training", "from", str(shards), "--output", str(output))
    options = ("--experiment", "one", "--seed", str(seed), *QUICK)
    with python.start(*words, *options, folder=output) as first:
        while not (output / "one/.holder.json").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        try:
            yield first
        finally:
            if first.poll() is None:
                first.kill()


def test_of_two_trainers_of_one_run_the_second_says_who_holds_it_and_harms_nothing(
    warm_training: WarmPython, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    with stopped_trainer(warm_training, scene_shards, tmp_path, seed=3) as first:
        command = ("from", scene_shards, "--output", tmp_path, "--experiment", "one", *QUICK)
        second = srp_train(*command, "--seed", 4)
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate()
    line = last_line(second)
    assert line.startswith(told(tmp_path / "one", first.pid))
    assert line.endswith(FIX)
    assert first.returncode == 0, errors
    paths = RunPaths(folder=tmp_path / "one")
    record = load_record(paths.record)
    assert (record.config.seed, record.evaluation is not None) == (3, True)
    assert not paths.holder.exists()


def test_a_killed_trainer_holds_its_run_no_longer(
    warm_training: WarmPython, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    with stopped_trainer(warm_training, scene_shards, tmp_path, seed=3) as first:
        first.kill()
    paths = RunPaths(folder=tmp_path / "one")
    assert paths.holder.exists()
    command = ("from", scene_shards, "--output", tmp_path, "--experiment", "one", *QUICK)
    assert srp_train(*command, "--seed", 3).exit_code == 0
    assert not paths.holder.exists()


@pytest.mark.sweep  # two processes
def test_under_torchrun_all_processes_end_where_another_trainer_holds_the_run_and_one_says_it(
    warm_training: WarmPython, scene_shards: Path, alone: Process, tmp_path: Path
) -> None:
    paths = RunPaths(folder=tmp_path / "one")
    words = ("-m", "training", "from", str(scene_shards), "--output", str(tmp_path))
    with held_run(paths, alone):
        done = warm_training.run_together(*words, "--experiment", "one", *QUICK, folder=tmp_path)
        assert [path.name for path in paths.folder.iterdir()] == [paths.holder.name]
    assert done.statuses == (2, 2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(told(paths.folder, os.getpid()))
    assert "stopped by SIGTERM" not in done.stderr


def test_a_run_that_ends_before_its_first_file_leaves_no_folder(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    result = srp_train("from", scene_shards, "--output", tmp_path, *QUICK, "--model", "none")
    assert last_line(result).startswith("error: --model must be a name that timm knows; got ")
    assert not list(tmp_path.iterdir())


def test_of_two_distillations_one_makes_the_losses_and_both_may_take_them_up(
    opened: ShardFolder, alone: Process, train: Callable[..., RunRecord],
    tiny: Callable[..., TrainConfig], tmp_path: Path,
) -> None:  # fmt: skip
    base = RunPaths(folder=tmp_path / "base")
    train(tiny(policy="random"), base.folder)
    wanted = DistillConfig(epochs=1, batch_size=16, proposer_channels=(4,))

    def fitted(name: str) -> RunRecord:
        return distill(
            base, wanted, shards=opened, paths=RunPaths(folder=tmp_path / name), process=alone,
            workers=1,
        )  # fmt: skip

    with held_run(base, alone), pytest.raises(ConfigError) as caught:
        fitted("early")
    assert f"error: {caught.value}".startswith(told(base.folder, os.getpid()))
    fitted("first")
    with held_run(base, alone):
        second = fitted("second")
    assert second.evaluation is not None
    held = RunPaths(folder=tmp_path / "held")
    with held_run(held, alone), pytest.raises(ConfigError, match=r"got .*held, which process "):
        fitted("held")
    assert not (tmp_path / "early").exists()


@pytest.mark.parametrize("part", ["half-0", "."])
def test_of_two_estimates_the_second_says_who_holds_the_part_that_it_needs(
    part: str, scene_shards: Path, opened: ShardFolder, alone: Process, srp_train: SrpTrain,
    tmp_path: Path,
) -> None:  # fmt: skip
    wanted = replace(HeadroomConfig(), epochs=1, batch_size=16)
    folder = work_folder(tmp_path, wanted, opened.limited(wanted.limit)) / part
    command = ("headroom", scene_shards, "--output", tmp_path, "--epochs", "1", "-b", "16")
    with held_run(RunPaths(folder=folder), alone):
        refused = srp_train(*command, "--device", "cpu")
    assert told(folder, os.getpid()) in last_line(refused)


Train = Callable[..., RunRecord]
Tiny = Callable[..., TrainConfig]
REFUSED = "a checkpoint must be the one that the run's record names; got "


class Killed(BaseException):
    """What stops a run in these tests, as a kill would."""


class Kill(Progress):
    def event(self, *_: object, **__: object) -> None:
        raise Killed


@pytest.fixture(scope="module")
def broken(
    train: Train, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, RunPaths]:
    """Two runs that were killed after the first of two epochs, by their seeds. Only read them."""
    runs = {}
    for seed in (3, 4):
        runs[seed] = RunPaths(folder=tmp_path_factory.mktemp("broken") / f"s{seed}")
        with pytest.raises(Killed):
            train(tiny(epochs=2, seed=seed), runs[seed].folder, progress=Kill())
    return runs


def edit(paths: RunPaths, **changed: object) -> None:
    """Change a record's config by hand."""
    fields = json.loads(paths.record.read_text())
    fields["config"] |= changed
    paths.record.write_text(json.dumps(fields))


def test_a_record_names_the_checkpoints_beside_it(
    broken: dict[int, RunPaths], finished: tuple[RunPaths, RunRecord]
) -> None:
    for paths in (broken[3], finished[0]):
        record = load_record(paths.record)
        assert (record.last, record.best) == (digest_of(paths.last), digest_of(paths.best))
        assert len(record.last) == 64
        assert record.before == ()
    assert digest_of(paths.folder / "none") == ""


def test_a_checkpoint_of_another_run_beside_an_edited_record_is_not_gone_on_with(
    broken: dict[int, RunPaths], train: Train, tiny: Tiny, tmp_path: Path
) -> None:
    paths = RunPaths(folder=shutil.copytree(broken[3].folder, tmp_path / "run"))
    shutil.copyfile(broken[4].last, paths.last)
    edit(paths, seed=4)
    with pytest.raises(CheckpointError) as caught:
        train(tiny(epochs=2, seed=4), paths.folder, resume=True)
    theirs, ours = digest_of(broken[4].last), digest_of(broken[3].last)
    assert str(caught.value) == (
        f"{REFUSED}SHA-256 {theirs[:12]}, not {ours[:12]} in {paths.last}. Restore that "
        "checkpoint, or delete the run's folder and train it again."
    )


def test_two_spellings_of_the_checkpoint_that_a_run_began_with_are_no_other_run(
    broken: dict[int, RunPaths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = RunPaths(folder=shutil.copytree(broken[3].folder, tmp_path / "run"))
    edit(paths, initial_checkpoint="runs/a/last.safetensors")
    monkeypatch.chdir(tmp_path)
    check_own(paths.last, read_meta(paths.last), load_record(paths.record))


def test_a_record_that_was_edited_is_told_from_what_its_checkpoint_says(
    broken: dict[int, RunPaths], train: Train, tiny: Tiny, opened: ShardFolder, tmp_path: Path
) -> None:
    paths = RunPaths(folder=shutil.copytree(broken[3].folder, tmp_path / "run"))
    edit(paths, seed=4)
    with pytest.raises(CheckpointError, match="got --seed 4 in the record, 3 in the checkpoint in"):
        train(tiny(epochs=2, seed=4), paths.folder, resume=True)
    edit(paths, seed=3)
    text = paths.record.read_text()
    paths.record.write_text(text.replace(opened.manifest.fingerprint, "0" * 64))
    others = replace(opened, manifest=replace(opened.manifest, fingerprint="0" * 64))
    with pytest.raises(CheckpointError, match=f"{REFUSED}shards of other images or options in "):
        train(tiny(epochs=2, seed=3), paths.folder, resume=True, shards=others)


def test_a_best_checkpoint_of_another_run_is_not_taken_over(
    broken: dict[int, RunPaths], train: Train, tiny: Tiny, tmp_path: Path
) -> None:
    paths = RunPaths(folder=shutil.copytree(broken[3].folder, tmp_path / "run"))
    shutil.copyfile(broken[4].best, paths.best)
    with pytest.raises(CheckpointError, match=f"{REFUSED}.* in {paths.best}"):
        train(tiny(epochs=2, seed=3), paths.folder, resume=True)


def test_a_run_of_before_records_named_checkpoints_is_gone_on_with_and_names_them_then(
    broken: dict[int, RunPaths], train: Train, tiny: Tiny, tmp_path: Path
) -> None:
    paths = RunPaths(folder=shutil.copytree(broken[3].folder, tmp_path / "run"))
    fields = json.loads(paths.record.read_text())
    for name in ("last", "best", "before"):
        del fields[name]
    paths.record.write_text(json.dumps(fields))
    record = train(tiny(epochs=2, seed=3), paths.folder, resume=True)
    assert record.last == digest_of(paths.last)


def test_the_other_checkpoint_of_a_run_may_take_the_place_of_a_damaged_one(
    broken: dict[int, RunPaths], train: Train, tiny: Tiny, tmp_path: Path
) -> None:
    paths = RunPaths(folder=shutil.copytree(broken[3].folder, tmp_path / "run"))
    shutil.copyfile(paths.best, paths.last)
    assert train(tiny(epochs=2, seed=3), paths.folder, resume=True).evaluation is not None


def test_a_checkpoint_or_logits_of_another_run_are_not_scored(
    finished: tuple[RunPaths, RunRecord], broken: dict[int, RunPaths], srp_train: SrpTrain,
    tmp_path: Path,
) -> None:  # fmt: skip
    paths = RunPaths(folder=shutil.copytree(finished[0].folder, tmp_path / "finished"))
    shutil.copyfile(broken[4].last, paths.last)
    for command in ("evaluate", "audit"):
        line = last_line(srp_train(command, paths.folder, "--device", "cpu"))
        assert line.startswith(f"error: {REFUSED}--")
    shutil.copyfile(finished[0].last, paths.last)
    paths.record.write_text(paths.record.read_text().replace(digest_of(paths.last), "0" * 64))
    assert last_line(srp_train("report", tmp_path)) == (
        "error: a run's logits must be of its own checkpoints, samples and crops; got those of "
        f"other checkpoints in {paths.logits}. Delete the file: it is computed again, or left out."
    )
