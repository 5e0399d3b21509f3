"""Faults: studies of several jobs in processes of their own, broken off in every way."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from warm import Program, WarmPython

from pipeline import ShardFolder
from pipeline.common.progress import Progress
from training.choose.config import DistillConfig
from training.config import TrainConfig
from training.data.processes import Process
from training.saved.record import RunRecord, load_record
from training.study import jobs, runner
from training.study.profiles import PlannedArm, Profile
from training.study.runner import plan_runs, run_study


class Told(Progress):
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, text: str = "", **fields: Any) -> None:
        self.events.append((name, fields))


def until(condition: Callable[[], object]) -> None:
    """Wait; a wait for ever is ended by the limit of a test."""
    while not condition():
        time.sleep(0.005)


def assert_same(one: Path, other: Path) -> None:
    """Compare all weights and figures of two studies."""
    found = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert found == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    for path in found:
        tensors, theirs = load_file(one / path), load_file(other / path)
        assert tensors.keys() == theirs.keys()
        assert all(torch.equal(tensors[name], theirs[name]) for name in tensors), path
    for path in one.rglob("record.json"):
        record, there = load_record(path), load_record(other / path.relative_to(one))
        assert record.evaluation == there.evaluation
        losses, theirs_too = (
            [epoch.train_loss for epoch in each.epochs] for each in (record, there)
        )
        assert losses == theirs_too


TINY = Profile(
    epochs=2,
    seeds=(0,),
    arms=(
        PlannedArm(name="whole", config=TrainConfig(policy="whole", candidates="full")),
        PlannedArm(name="random", config=TrainConfig(policy="random")),
        *(
            PlannedArm(
                name=f"distilled-{kind}",
                config=TrainConfig(policy="random"),
                distilled=DistillConfig(proposer=kind, epochs=2, batch_size=16),
            )
            for kind in ("map", "crops")
        ),
    ),
    evaluations=1,
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Give this process the share of the CPUs that a worker of two on two CPUs has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.sweep  # two studies
@pytest.mark.usefixtures("one_thread")
def test_one_and_two_jobs_give_the_same_figures_and_weights_and_train_the_folds_once(
    opened: ShardFolder, alone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "num_usable", lambda: 2)
    runs = [
        replace(run, config=replace(run.config, model="test_resnet", batch_size=16, amp=False))
        for run in plan_runs(TINY, opened, device="cpu", workers=2)
    ]

    def train(num_jobs: int) -> tuple[Counter[str], list[RunRecord], Path]:
        told, output = Told(), tmp_path / str(num_jobs)
        records = run_study(
            runs, shards=opened, output=output, process=alone, jobs=num_jobs, progress=told
        )
        texts = Counter(f"{f.get('run')} {f['epoch']}" for n, f in told.events if n == "epoch")
        return texts, records, output

    alone_epochs, _, one = train(1)
    epochs, records, two = train(2)
    assert not multiprocessing.active_children()
    assert epochs == {"whole-s0 1": 1, "whole-s0 2": 1, "random-s0 1": 3, "random-s0 2": 3}
    assert alone_epochs == {"None 1": 4, "None 2": 4}
    assert [record.name for record in records] == [run.name for run in runs]
    assert_same(one, two)
    assert {record.config.workers for record in records} == {1}
    monkeypatch.setattr(runner, "run_jobs", lambda queue, *_, **__: queue.ready and 1 / 0)
    assert train(2)[1] == records  # no worker is started for what is finished


# Starts the study as a command, in a process that has imported what it needs; its workers are
# forks of it.
COMMAND = """
import multiprocessing
import os
import sys

from training.cli.train import main
from training.study import jobs

if "fork" in sys.argv:
    sys.argv.remove("fork")
    jobs.CONTEXT = multiprocessing.get_context("fork")
jobs.num_usable = lambda: 2
os.fsync = lambda _descriptor: None  # no test cuts the power
if __name__ == "__main__":
    main()
"""
EPOCHS = 12


@pytest.fixture(scope="module")
def start(
    warm_training: WarmPython, scene_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Program]:
    """Start a study of four runs as a command: `start(output)`."""
    script = tmp_path_factory.mktemp("script") / "study.py"
    script.write_text(COMMAND)
    options = ("--profile", "smoke", "--arms", "whole,centre", "--seeds", "0,1", "--device", "cpu")

    def begin(output: Path, *words: str) -> Program:
        output.mkdir(exist_ok=True)
        return warm_training.start(
            str(script), *words, "study", str(scene_shards), *options, "--epochs", str(EPOCHS),
            "--jobs", "2", "--output", str(output), folder=output,
        )  # fmt: skip

    return begin


@pytest.fixture(scope="module")
def unbroken(start: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was not disturbed. Only read it."""
    output = tmp_path_factory.mktemp("studies") / "unbroken"
    with start(output, "fork") as program:
        out, err = program.communicate()
    assert program.returncode == 0, err
    assert out.count("top-1 ") == 4
    for number, name in enumerate(("whole-s0", "centre-s0", "whole-s1", "centre-s1"), start=1):
        assert f"run {number}/4: {name}" in err
    assert "images/s" in err  # of the bar
    assert "epoch " not in err
    return output


def children(pid: int) -> list[int]:
    """List the processes that a process started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("how", "status"),
    [("SIGINT", 130), ("SIGTERM", 75), ("SIGKILL", -signal.SIGKILL), ("a worker", 1)],
)
def test_a_study_that_is_broken_off_leaves_no_process_and_goes_on_to_the_same_results(
    how: str, status: int, start: Callable[..., Program], unbroken: Path, tmp_path: Path
) -> None:
    words = () if how == "SIGKILL" else ("fork",)  # that one starts as users' do
    output = tmp_path / "study"
    with start(output, *words) as program:
        until(lambda: len(list(output.glob("*/last.safetensors"))) >= 2 or program.poll())
        started = children(program.pid)
        workers = [pid for pid in started if children_name(pid) != "tracker"]
        if how == "SIGINT":  # a terminal sends it to all
            for pid in (program.pid, *workers):
                os.kill(pid, signal.SIGINT)
        elif how == "a worker":
            os.kill(workers[0], signal.SIGKILL)
        else:
            os.kill(program.pid, signal.Signals[how])
        _, err = program.communicate()
        until(lambda: not any(map(is_running, started)))
    assert len(workers) == 2
    assert program.returncode == status, err
    assert len(list(output.glob("*/logits.safetensors"))) < 4, "it was broken off too late"
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == (how != "SIGKILL")
    if how in ("SIGINT", "SIGTERM"):
        assert "error: stopped " in lines[0]
        assert " and saved what is done. Resume with: " in lines[0]
    if how == "a worker":
        assert "got SIGKILL (out of memory?). Run the same command again with" in lines[0]
    with start(output, "fork") as program:
        _, err = program.communicate()
    assert program.returncode == 0, err
    assert_same(unbroken, output)


def children_name(pid: int) -> str:
    line = Path(f"/proc/{pid}/cmdline").read_text()
    return "tracker" if "resource_tracker" in line else "worker"
