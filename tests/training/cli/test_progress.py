import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from training.cli.progress import StudyBars, run_reporters
from training.config import TrainConfig
from training.run.epoch import Progress
from training.run.record import EpochRecord
from training.study.runner import PlannedRun

EPOCH = EpochRecord(
    epoch=2, train_loss=1.23456, train_top1=50, val_top1=61.5, images_per_s=140.4, seconds=1
)


@pytest.fixture
def bars() -> Bars:
    return Bars(console=Console(file=io.StringIO()))


def test_ranks_without_bars_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    on_progress, on_epoch = run_reporters(None, 3)
    on_progress(Progress("train", 1, 1, 2, 0.5, 50))
    on_epoch(EPOCH)
    shown = StudyBars(None, [])
    shown.on_run(PlannedRun(name="a", config=TrainConfig(), cost=1), 0)[1](EPOCH)
    assert capsys.readouterr() == ("", "")


def test_a_runs_bar_goes_over_all_its_epochs(bars: Bars) -> None:
    on_progress, _ = run_reporters(bars, 3)
    on_progress(Progress("train", 2, 50, 100, 1.5, 25))
    (task,) = bars.tasks
    assert (task.completed, task.total) == (150, 300)
    assert task.description == "epoch 2/3"
    assert task.fields["figures"] == "loss 1.500, top-1 25.0 %"
    on_progress(Progress("train", 3, 100, 100, 1, 75))
    assert task.finished


def test_an_evaluation_has_a_bar_while_it_lasts(bars: Bars) -> None:
    on_progress, _ = run_reporters(bars, 3)
    on_progress(Progress("val", 1, 10, 20))
    assert [task.description for task in bars.tasks] == ["validating"]
    on_progress(Progress("val", 1, 20, 20))
    assert not bars.tasks
    on_progress(Progress("table", 3, 5, 20))
    assert [task.description for task in bars.tasks] == ["scoring every crop"]


def test_each_epoch_leaves_one_line_on_stderr(
    bars: Bars, capsys: pytest.CaptureFixture[str]
) -> None:
    run_reporters(bars, 3)[1](EPOCH)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("epoch 2/3  loss 1.2346  train top-1 50.00 %  val top-1 61.50 %  140 images/s\n")


def test_a_studys_bar_moves_by_the_cost_of_its_runs(bars: Bars) -> None:
    config = TrainConfig(epochs=2)
    runs = [
        PlannedRun(name=name, config=config, cost=cost) for name, cost in (("a", 100), ("b", 300))
    ]
    shown = StudyBars(bars, runs)
    study = bars.tasks[0]
    assert study.total == 400
    on_progress, _ = shown.on_run(runs[0], 0)
    on_progress(Progress("train", 1, 10, 10, 1, 1))
    assert study.completed == 50
    on_progress, _ = shown.on_run(runs[1], 1)
    assert study.completed == 100
    assert study.description == "run 2/2"
    assert len(bars.tasks) == 1  # the bars of the run before are gone
    on_progress(Progress("train", 2, 10, 10, 1, 1))
    assert study.completed == study.total
