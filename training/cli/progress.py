"""What training shows on the terminal: bars that move, and one line for each epoch."""

import dataclasses

from rich.progress import Progress as Bars
from rich.progress import TaskID

from pipeline.common.console import console
from pipeline.common.event_log import LOG
from training.run.epoch import OnProgress, Progress
from training.run.record import EpochRecord
from training.run.train import OnEpoch
from training.study.runner import PlannedRun

STAGES = {
    "val": "validating",
    "table": "scoring every crop",
    "losses": "scoring what was left out",
    "fit": "fitting the proposer",
}


def run_reporters(bars: Bars | None, epochs: int) -> tuple[OnProgress, OnEpoch]:
    """Show one run.

    Args:
        bars: To draw on; None says nothing, as on every rank but 0.
        epochs: Of the run.
    """
    if bars is None:
        return _say_nothing, _say_nothing
    shown = _RunBars(bars, epochs)
    return shown.on_progress, shown.on_epoch


def _say_nothing(_: object) -> None:
    pass


class _RunBars:
    """A bar for all of a run's training, and one for each evaluation while it lasts."""

    def __init__(self, bars: Bars, epochs: int) -> None:
        self.bars, self.epochs = bars, epochs
        self.tasks: dict[str, TaskID] = {}
        LOG.begin()

    def on_progress(self, now: Progress) -> None:
        training = now.stage == "train"
        LOG.stage(f"{now.stage} {now.epoch}", now.done, now.total)
        total = now.total * (self.epochs if training else 1)
        done = now.done + (now.total * (now.epoch - 1) if training else 0)
        label = f"epoch {now.epoch}/{self.epochs}" if training else STAGES[now.stage]
        figures = "" if now.loss is None else f"loss {now.loss:.3f}, top-1 {now.top1:.1f} %"
        if now.stage not in self.tasks:
            self.tasks[now.stage] = self.bars.add_task(label, total=total, figures="")
        task = self.tasks[now.stage]
        self.bars.update(task, completed=done, description=label, figures=figures)
        if not training and now.done >= now.total:
            self.bars.remove_task(self.tasks.pop(now.stage))

    def on_epoch(self, done: EpochRecord) -> None:
        val = "" if done.val_top1 is None else f"  val top-1 {done.val_top1:.2f} %"
        LOG.write("epoch", **dataclasses.asdict(done))
        console().print(
            f"epoch {done.epoch}/{self.epochs}  loss {done.train_loss:.4f}  "
            f"train top-1 {done.train_top1:.2f} %{val}  {done.images_per_s:.0f} images/s"
        )

    def close(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()


class StudyBars:
    """A bar for the whole study above the bars of the run in hand."""

    def __init__(self, bars: Bars | None, runs: list[PlannedRun]) -> None:
        """Draw the study's bar.

        Args:
            bars: To draw on; None says nothing.
            runs: That the study consists of.
        """
        self._bars, self._runs = bars, runs
        self._run: _RunBars | None = None
        self._base = 0
        total = sum(run.cost for run in runs)
        self._task = bars.add_task("study", total=total, figures="") if bars else None

    def on_run(self, run: PlannedRun, position: int) -> tuple[OnProgress, OnEpoch]:
        """Begin a run; gives what to tell of it."""
        if self._bars is None or self._task is None:
            return _say_nothing, _say_nothing
        if self._run is not None:
            self._run.close()
        self._run = _RunBars(self._bars, run.config.epochs)
        self._base = sum(before.cost for before in self._runs[:position])
        title = f"run {position + 1}/{len(self._runs)}"
        self._bars.update(self._task, completed=self._base, description=title, figures=run.name)
        console().print(f"{title}: {run.name}")
        LOG.write("run", name=run.name, position=position + 1, total=len(self._runs))
        return self._on_progress(run), self._run.on_epoch

    def _on_progress(self, run: PlannedRun) -> OnProgress:
        shown, bars, task, base = self._run, self._bars, self._task, self._base

        def report(now: Progress) -> None:
            if shown is None or bars is None or task is None:
                return
            shown.on_progress(now)
            if now.stage == "train" and run.distilled is None:
                epochs_done = now.epoch - 1 + now.done / now.total
                bars.update(task, completed=base + run.cost * epochs_done / run.config.epochs)

        return report
