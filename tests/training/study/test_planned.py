from collections.abc import Callable

from pipeline.common.errors import DivergedError
from pipeline.common.progress import SILENT, Progress
from training.choose.config import DistillConfig
from training.config import TrainConfig
from training.study.finished import FinishedRun
from training.study.planned import PlannedRun, Queue, StudyProgress, most_expensive_first


class Told(Progress):
    def __init__(self) -> None:
        self.all: list[tuple[object, ...]] = []

    def update(self, *now: object) -> None:
        self.all.append(now)

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        self.all.append((name, text))


def planned(name: str, cost: float, base: str | None = None, *, seed: int = 0) -> PlannedRun:
    config = TrainConfig(policy="random", seed=seed)
    return PlannedRun(name=name, config=config, costs={"training": cost}, base=base)


def test_the_most_expensive_run_begins_first_counted_with_what_waits_for_it() -> None:
    runs = [
        planned("whole", 10), planned("random", 4), planned("fit", 1, "random"),
        planned("tuned", 6, "fit"), planned("cheap", 3),
        planned("next", 100, seed=1),
    ]  # fmt: skip
    names = [run.name for run in most_expensive_first(runs)]
    assert names == ["random", "whole", "fit", "tuned", "cheap", "next"]


def test_a_run_is_ready_once_its_base_has_finished_or_where_its_base_is_of_no_concern(
    make_run: Callable[..., FinishedRun],
) -> None:
    runs = [planned("a", 1), planned("b", 1, "a"), planned("c", 1, "elsewhere")]
    queue = Queue(runs, StudyProgress(SILENT, runs))

    def ready() -> list[str]:
        return [run.name for run in queue.ready]

    assert ready() == ["a", "c"]
    queue.begin(runs[0])
    assert ready() == ["c"]
    record = make_run("a", policy="random").record
    queue.finish(runs[0], record)
    assert ready() == ["b", "c"]
    assert queue.records == {"a": record}


def test_all_that_waits_for_a_run_that_diverged_is_skipped() -> None:
    runs = [planned("a", 1), planned("b", 1, "a"), planned("c", 1, "b"), planned("d", 1)]
    told = Told()
    queue = Queue(runs, StudyProgress(told, runs))
    queue.begin(runs[0])
    queue.fail(runs[0], DivergedError("no number."))
    assert queue.failed == {
        "a": "no number.",
        "b": "skipped, since a is not finished",
        "c": "skipped, since b is not finished",
    }
    assert queue.ready == [runs[3]]
    assert ("outcome", "run 1/4: a: no number.") in told.all
    assert told.all[-1] == ("study", 3, 4, "")


def test_a_studys_bar_moves_by_the_cost_of_the_runs_that_one_process_trains() -> None:
    told = Told()
    config = TrainConfig(epochs=2)
    runs = [
        PlannedRun(name="a", config=config, costs={"training": 80, "scoring": 20}),
        PlannedRun(name="b", config=config, costs={"fit": 300}, distilled=DistillConfig()),
    ]
    shown = StudyProgress(told, runs)
    own = shown.begin(runs[0])
    own.update("training", 10, 20, "loss 1")
    own.update("validating", 1, 2)  # costs nothing that was planned
    own.update("scoring", 1, 2)
    shown.end("a")
    own = shown.begin(runs[1])
    own.event("epoch", "its end")
    own.update("fit", 1, 3)
    shown.end("b", "top-1 1.00 %")
    assert told.all == [
        ("study", 0, 400, "a"), ("run", "run 1/2: a"),
        ("training", 10, 20, "loss 1"), ("study", 40, 400, "a"),
        ("validating", 1, 2, ""),
        ("scoring", 1, 2, ""), ("study", 90, 400, "a"),
        ("study", 100, 400, ""),
        ("study", 100, 400, "b"), ("run", "run 2/2: b"), ("epoch", "its end"),
        ("fit", 1, 3, ""), ("study", 200, 400, "b"),
        ("study", 400, 400, ""), ("outcome", "run 2/2: b: top-1 1.00 %"),
    ]  # fmt: skip


def test_a_studys_bar_moves_by_all_runs_that_are_trained_side_by_side() -> None:
    told = Told()
    runs = [planned("a", 100), planned("b", 300)]
    shown = StudyProgress(told, runs)
    for run in runs:
        shown.begin(run)
    shown.move("b", 0.5)
    shown.move("a", 0.1)
    shown.end("b", "top-1 2.00 %")
    assert [now for now in told.all if now[0] == "study"] == [
        ("study", 0, 400, "a"), ("study", 0, 400, "a, b"), ("study", 150, 400, "a, b"),
        ("study", 160, 400, "a, b"), ("study", 310, 400, "a"),
    ]  # fmt: skip
    assert told.all[-1] == ("outcome", "run 2/2: b: top-1 2.00 %")
