"""The planned runs of a study: what each costs, which may start, and how far all of them are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.common.errors import DivergedError, few
from pipeline.common.progress import Progress, Weighted
from training.choose.config import DistillConfig
from training.config import TrainConfig
from training.saved.record import RunRecord

TRAINING = "training"  # the stage in which `fit` takes its steps
RUN = "run"  # the bar of all stages of one run; it is not shown, but moves the study's


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One arm with one seed.

    Attributes:
        name: Name of the run's folder.
        config: What to train.
        costs: About how many images pass the classifier forwards and backwards in each stage.
        distilled: How to fit a proposer to the classifier of `base`; None trains `config`.
        base: Name of the run whose networks it begins with, if any.
        is_judged: Whether proposers are fitted to it: then its out-of-fold logits are part of it.
    """

    name: str
    config: TrainConfig
    costs: Mapping[str, float]
    distilled: DistillConfig | None = None
    base: str | None = None
    is_judged: bool = False

    @property
    def cost(self) -> float:
        """Cost of all stages."""
        return sum(self.costs.values())


def most_expensive_first(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Order runs so that several processes end at about the same time.

    All of one seed come before the next seed. A run counts with the longest chain of runs that
    wait for it: the first link of a long chain must not start last.

    Args:
        runs: Each after its base.
    """
    chain = dict.fromkeys((run.name for run in runs), 0.0)
    for run in reversed(runs):
        chain[run.name] += run.cost
        if run.base in chain:
            chain[run.base] = max(chain[run.base], chain[run.name])
    seeds = [run.config.seed for run in runs]
    return sorted(runs, key=lambda run: (seeds.index(run.config.seed), -chain[run.name]))


class StudyProgress(Progress):
    """Shows one bar for all runs, weighted by their cost, and forwards what a run shows itself."""

    def __init__(self, progress: Progress, runs: Sequence[PlannedRun]) -> None:
        """Show no run yet."""
        self._progress = progress
        self._costs = {run.name: run.cost for run in runs}
        self._shares = dict.fromkeys(self._costs, 0.0)
        self._numbers: dict[str, int] = {}  # in the order in which they began
        self._running: list[str] = []

    def begin(self, run: PlannedRun) -> Progress:
        """Announce a run; returns what shows the run that this process trains."""
        self._numbers[run.name] = len(self._numbers) + 1
        self._running.append(run.name)
        self.move(run.name, 0.0)
        place = {"position": self._numbers[run.name], "total": len(self._costs)}
        self._progress.event("run", self._title(run.name), name=run.name, **place)
        return Weighted(self, RUN, run.costs)

    def move(self, name: str, share: float) -> None:
        """Show that a share of a run is done."""
        self._shares[name] = share
        done = sum(share * self._costs[name] for name, share in self._shares.items())
        self._progress.update(
            "study", round(done), max(1, round(sum(self._costs.values()))), few(self._running)
        )

    def end(self, name: str, outcome: str = "", **fields: object) -> None:
        """Count a run as done, or as one that never will be, and print its outcome, if any."""
        if name in self._running:
            self._running.remove(name)
        self.move(name, 1.0)
        if outcome:
            self._progress.event("outcome", f"{self._title(name)}: {outcome}", name=name, **fields)

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Forward it, or move the study by the run that this process trains."""
        if stage == RUN:
            self.move(self._running[-1], done / total)
        else:
            self._progress.update(stage, done, total, figures)

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        """Forward it."""
        self._progress.event(name, text, **fields)

    def _title(self, name: str) -> str:
        return f"run {self._numbers[name]}/{len(self._costs)}: {name}"


class Queue:
    """The runs that have not begun, in order; each waits for its base, if that is one of them.

    Attributes:
        records: Of the finished runs, by name.
        failed: Why the others are not finished: they diverged, or their base did.
    """

    def __init__(self, runs: Sequence[PlannedRun], shown: StudyProgress) -> None:
        """Let all of them wait.

        Args:
            runs: Each after its base.
            shown: Is told of what begins and ends.
        """
        self.records: dict[str, RunRecord] = {}
        self.failed: dict[str, str] = {}
        self._shown = shown
        self._waiting = list(runs)
        self._open = {run.name for run in runs}

    @property
    def ready(self) -> list[PlannedRun]:
        """The runs that may begin now."""
        return [run for run in self._waiting if run.base not in self._open]

    def begin(self, run: PlannedRun) -> Progress:
        """Take a run out; returns what shows it where this process trains it."""
        self._waiting.remove(run)
        return self._shown.begin(run)

    def finish(self, run: PlannedRun, record: RunRecord) -> None:
        """Keep the record of a run, whose dependents may begin now."""
        self.records[run.name] = record
        self._open.remove(run.name)
        top1 = record.evaluation.top1 if record.evaluation is not None else None
        outcome = "" if top1 is None else f"top-1 {top1:.2f} %"
        self._shown.end(run.name, outcome, top1=top1)

    def fail(self, run: PlannedRun, error: DivergedError) -> None:
        """Note why a run is not finished, and skip its dependents."""
        self.failed[run.name] = str(error)
        self._shown.end(run.name, str(error))
        for other in tuple(self._waiting):
            if other.base in self.failed:
                self._waiting.remove(other)
                self.failed[other.name] = f"skipped, since {other.base} is not finished"
                self._shown.end(other.name)
