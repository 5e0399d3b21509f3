import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ShardFolder
from pipeline.common.errors import (
    ConfigError,
    DivergedError,
    PreemptedRunError,
    SrpError,
    StoppedRunError,
    VerificationError,
)
from pipeline.common.progress import SILENT, Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.run.signals import noted_signals
from training.saved.record import RunRecord
from training.study import jobs
from training.study.finished import FinishedRun
from training.study.jobs import Work, count_jobs, run_jobs
from training.study.planned import PlannedRun, Queue, StudyProgress
from training.study.runner import run_study

FORK = multiprocessing.get_context("fork")  # for workers that do not compute: they start at once


def planned(name: str, base: str | None = None) -> PlannedRun:
    config = TrainConfig(policy="random", device="cpu")
    return PlannedRun(name=name, config=config, costs={"training": 100}, base=base)


class Told(Progress):
    def __init__(self) -> None:
        self.updates: list[tuple[object, ...]] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def update(self, *now: object) -> None:
        self.updates.append(now)

    def event(self, name: str, /, text: str = "", **fields: Any) -> None:
        self.events.append((name, text, fields))


Study = Callable[..., Queue]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    """Run a study of two jobs whose workers are forks: `study(work, runs)`."""
    monkeypatch.setattr(jobs, "CONTEXT", FORK)

    def run(work: Work, runs: list[PlannedRun], *, progress: Progress = SILENT) -> Queue:
        shown = StudyProgress(progress, runs)
        queue = Queue(runs, shown)
        run_jobs(queue, work, jobs=2, shown=shown)
        assert not multiprocessing.active_children()
        return queue

    return run


@pytest.fixture(scope="module")
def record(make_run: Callable[..., FinishedRun]) -> RunRecord:
    """The record of some run."""
    return make_run("some", policy="random").record


def until(condition: Callable[[], object]) -> None:
    """Wait; a wait for ever is ended by the limit of a test."""
    while not condition():
        time.sleep(0.005)


def save_when_stopped(folder: Path, run: PlannedRun) -> RunRecord:
    """Do as a training does that is stopped between two steps."""
    with noted_signals() as stop:
        (folder / f"{run.name} trains").touch()
        until(lambda: stop.wanted)
    (folder / f"{run.name} saved").touch()
    raise PreemptedRunError("stopped at step 1, and saved.")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_job_is_a_chain_and_there_is_one_for_each_cpu_but_one_on_a_gpu_or_among_processes(
    alone: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "num_usable", lambda: 3)
    four = [planned(name) for name in "abcd"]
    on_gpu = replace(alone, device=torch.device("cuda", 0))
    assert count_jobs(four, alone, wanted=None) == 3
    assert count_jobs(four, alone, wanted=9) == 4
    assert count_jobs(four, on_gpu, wanted=None) == 1
    assert count_jobs(four, on_gpu, wanted=2) == 2
    assert count_jobs(four, replace(alone, world_size=2), wanted=None) == 1
    chain = [planned("a"), planned("b", "a"), planned("c", "b"), planned("d", "a")]
    assert count_jobs(chain, alone, wanted=None) == 2


def test_several_jobs_are_refused_among_several_processes(
    opened: ShardFolder, alone: Process, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"a study with several --jobs runs in one process; got"):
        run_study(
            [planned("a"), planned("b")], shards=opened, output=tmp_path, jobs=2,
            process=replace(alone, world_size=2),
        )  # fmt: skip


def test_two_runs_are_trained_at_a_time_each_after_its_base(
    study: Study, record: RunRecord, tmp_path: Path
) -> None:
    runs = [planned("a"), planned("b", "a"), planned("c"), planned("d", "b")]
    begun, ended = [f"{name} begun" for name in "abcd"], [f"{name} ended" for name in "abcd"]
    seen = tmp_path / "seen"
    seen.mkdir()

    def work(run: PlannedRun, *, process: Process, progress: Progress) -> RunRecord:
        assert process == Process()
        there = names(seen)
        assert sum(name in there for name in begun) - sum(name in there for name in ended) < 2
        assert run.base is None or f"{run.base} ended" in there
        (seen / f"{run.name} begun").touch()
        if run.name in "ac":  # at the same time
            until(lambda: {"a begun", "c begun"} <= names(seen))
        (seen / f"{run.name} ended").touch()
        return replace(record, name=run.name)

    told = Told()
    queue = study(work, runs, progress=told)
    assert {name: record.name for name, record in queue.records.items()} == {
        name: name for name in "abcd"
    }
    assert [fields["name"] for name, _, fields in told.events if name == "run"][:2] == ["a", "c"]
    lines = [text for name, text, _ in told.events if name == "outcome"]
    assert len(lines) == 4
    assert f"run 1/4: a: top-1 {record.evaluation.top1:.2f} %" in lines  # type: ignore[union-attr]


def test_what_workers_do_moves_one_bar_and_their_events_and_warnings_reach_the_log(
    study: Study, record: RunRecord, tmp_path: Path
) -> None:
    def work(run: PlannedRun, *, progress: Progress, **_: object) -> RunRecord:
        (tmp_path / run.name).touch()
        until(lambda: len(names(tmp_path)) == 2)  # in two workers, each of which warns
        progress.update("training", 25, 100, "loss 1")
        progress.event("epoch", "a line of one run among others", epoch=1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the disk is slow", stacklevel=1)
        return record

    told = Told()
    study(work, [planned("a"), planned("b")], progress=told)
    assert {stage for stage, *_ in told.updates} == {"study"}
    assert [done for _, done, *_ in told.updates if done in (25, 50)]  # by one, or by both
    assert ("study", 200, 200, "") in told.updates
    epochs = [(text, fields) for name, text, fields in told.events if name == "epoch"]
    assert sorted(epochs, key=str) == [("", {"run": name, "epoch": 1}) for name in "ab"]
    (warned,) = [text for name, text, _ in told.events if name == "warning"]
    assert "UserWarning: the disk is slow" in warned


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("--opt must be known; got x."),
        VerificationError("a shard must be whole; got half of one."),
        OSError(ENOSPC, os.strerror(ENOSPC), "runs/b/last.safetensors"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_in_a_worker_is_that_error_and_the_other_runs_are_saved(
    error: Exception, study: Study, tmp_path: Path
) -> None:
    def work(run: PlannedRun, **_: object) -> RunRecord:
        if run.name == "a":
            return save_when_stopped(tmp_path, run)
        until(lambda: "a trains" in names(tmp_path))
        raise error

    told = Told()
    with pytest.raises(type(error)) as caught:
        study(work, [planned("a"), planned("b"), planned("c")], progress=told)
    assert str(caught.value) == str(error)
    assert names(tmp_path) == {"a trains", "a saved"}
    assert [text for name, text, _ in told.events if name == "stopping"] == [
        "stopping: a will be saved; a second Ctrl-C ends at once"
    ]


def test_a_bug_in_a_worker_comes_out_with_the_place_where_it_was(study: Study) -> None:
    def work(run: PlannedRun, **_: object) -> RunRecord:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        study(work, [planned("a")])
    assert any("in work" in note for note in caught.value.__notes__)


def test_a_run_that_diverged_is_a_result_and_what_waits_for_it_is_skipped(
    study: Study, record: RunRecord
) -> None:
    def work(run: PlannedRun, **_: object) -> RunRecord:
        if run.name == "a":
            raise DivergedError("a loss that is no number.", keys=("key",))
        return record

    queue = study(work, [planned("a"), planned("b", "a"), planned("c")])
    assert queue.failed == {
        "a": "a loss that is no number.", "b": "skipped, since a is not finished"
    }  # fmt: skip
    assert queue.records == {"c": record}


def kill_beside_a(tmp_path: Path, number: int) -> Work:
    """Work in which every run but `a` sends its own worker a signal, outside of a training."""

    def work(run: PlannedRun, **_: object) -> RunRecord:
        if run.name == "a":
            return save_when_stopped(tmp_path, run)
        until(lambda: "a trains" in names(tmp_path))
        os.kill(os.getpid(), number)
        raise AssertionError

    return work


def test_a_worker_that_is_killed_ends_the_study_in_one_line_and_the_other_runs_are_saved(
    study: Study, tmp_path: Path
) -> None:
    with pytest.raises(SrpError) as caught:
        study(kill_beside_a(tmp_path, signal.SIGKILL), [planned("a"), planned("b")])
    assert str(caught.value) == (
        "a worker of the study died while it trained b; got SIGKILL (out of memory?). Run the same "
        "command again with a lower --jobs; what is saved is kept."
    )
    assert caught.value.exit_status == 1
    assert names(tmp_path) == {"a trains", "a saved"}


def test_a_worker_that_gets_sigterm_alone_stops_the_study_as_if_all_had(
    study: Study, tmp_path: Path
) -> None:
    with pytest.raises(PreemptedRunError) as caught:
        study(kill_beside_a(tmp_path, signal.SIGTERM), [planned("a"), planned("b")])
    assert str(caught.value) == "stopped b, a, and saved what is done."
    assert names(tmp_path) == {"a trains", "a saved"}


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, StoppedRunError), (signal.SIGTERM, PreemptedRunError)]
)
def test_a_signal_stops_all_workers_which_save(
    number: signal.Signals, kind: type[StoppedRunError], study: Study, tmp_path: Path
) -> None:
    def work(run: PlannedRun, **_: object) -> RunRecord:
        if run.name == "b":
            until(lambda: "a trains" in names(tmp_path))
            os.kill(os.getppid(), number)
        return save_when_stopped(tmp_path, run)

    with pytest.raises(kind, match=r"^stopped [ab], [ab], and saved what is done\.$") as caught:
        study(work, [planned("a"), planned("b"), planned("c")])
    assert type(caught.value) is kind
    assert names(tmp_path) == {"a trains", "a saved", "b trains", "b saved"}


def test_a_second_interrupt_ends_at_once(study: Study, tmp_path: Path) -> None:
    def work(run: PlannedRun, **_: object) -> RunRecord:
        with noted_signals() as stop:
            (tmp_path / run.name).touch()
            until(lambda: len(names(tmp_path)) == 2)
            if run.name == "b":
                os.kill(os.getppid(), signal.SIGINT)
                until(lambda: stop.wanted)
                os.kill(os.getppid(), signal.SIGINT)
            until(lambda: False)
        raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        study(work, [planned("a"), planned("b")])
    assert not multiprocessing.active_children()
