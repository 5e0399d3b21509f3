"""All that the report shows, worked out from finished runs before a word of HTML is written."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline import ShardFolder
from training.report.charts import costs, plots
from training.report.contact_sheet import SheetRow, draw_sheet, why_no_sheet
from training.run.record import DataRecord, RunRecord
from training.study.finished import Arm, FinishedRun, best_arm, differing_options, group_arms
from training.study.sentences import describe_data, is_drawn, summarise_arms

SHEET_ROWS = 8
MAX_CLASS_ROWS = 40  # beyond, the classes with the lowest accuracy


@dataclass(frozen=True, kw_only=True)
class Charts:
    """SVGs that `plots` drew; the only markup that the page does not escape."""

    curves: Markup
    glimpses: Markup | None
    macs: Markup
    shares: Markup | None
    confusion: Markup | None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """How a run fares on one class; `mistaken` is what it is most often taken for, if ever."""

    name: str
    num_samples: int
    top1: float
    mistaken: str | None
    num_mistaken: int


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the template shows.

    Attributes:
        data_line: What the runs were trained on.
        is_drawn: Whether that is the embedded set.
        summary: What came out, in sentences.
        data: That all runs share.
        arms: In order.
        best: The arm that chooses and is most accurate, if one chooses.
        unfinished: Records without an evaluation.
        options: Names of those that differ between arms.
        charts: Drawn.
        sheet: Images with the best arm's choice.
        sheet_note: Why there are none.
        run: The most accurate one.
        classes: How it fares on each class.
    """

    data_line: str
    is_drawn: bool
    summary: tuple[str, ...]
    data: DataRecord
    arms: tuple[Arm, ...]
    best: Arm | None
    unfinished: tuple[RunRecord, ...]
    options: tuple[str, ...]
    charts: Charts
    sheet: tuple[SheetRow, ...]
    sheet_note: str | None
    run: FinishedRun
    classes: tuple[ClassRow, ...]

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """All finished ones."""
        return tuple(run for arm in self.arms for run in arm.runs)


def make_page(
    runs: Sequence[FinishedRun],
    *,
    unfinished: tuple[RunRecord, ...] = (),
    shards: ShardFolder | None = None,
    data_note: str = "",
) -> Page:
    """Turn finished runs into all that the page shows."""
    arms = group_arms(runs)
    data = runs[0].record.data
    selecting = best_arm(arm for arm in arms if arm.config.selects)
    run = max(runs, key=lambda run: run.evaluation.top1)
    sheet, sheet_note = _sheet(selecting, shards)
    return Page(
        data_line=describe_data(data, data_note),
        is_drawn=is_drawn(data),
        summary=summarise_arms(arms),
        data=data,
        arms=arms,
        best=selecting,
        unfinished=unfinished,
        options=differing_options(arms),
        charts=_draw_charts(arms, run),
        sheet=sheet,
        sheet_note=sheet_note,
        run=run,
        classes=_class_rows(run),
    )


def _sheet(arm: Arm | None, shards: ShardFolder | None) -> tuple[tuple[SheetRow, ...], str | None]:
    if arm is None:
        return (), "No run chose its crop, so there is no choice to show."
    run = arm.best_run
    note = why_no_sheet(run, shards)
    if note is not None or shards is None or run.table is None:
        return (), note
    return draw_sheet(run, run.table, shards, num_rows=SHEET_ROWS), None


def _draw_charts(arms: Sequence[Arm], run: FinishedRun) -> Charts:
    names = run.record.data.class_names
    return Charts(
        curves=Markup(plots.learning_curves(arms)),  # noqa: S704 matplotlib escaped its text
        glimpses=_optional(plots.glimpse_sizes(arms)),
        macs=Markup(costs.macs(arms)),  # noqa: S704 matplotlib escaped its text
        shares=_optional(plots.crop_shares(arms)),
        confusion=_optional(plots.confusion(run.evaluation, names)),
    )


def _optional(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704 matplotlib escaped its text


def _class_rows(run: FinishedRun) -> tuple[ClassRow, ...]:
    names, rows = run.record.data.class_names, []
    for true, counts in enumerate(run.evaluation.confusion):
        wrong = [0 if predicted == true else count for predicted, count in enumerate(counts)]
        worst = max(range(len(wrong)), key=wrong.__getitem__)
        rows.append(
            ClassRow(
                name=names[true],
                num_samples=sum(counts),
                top1=run.evaluation.top1_classes[true],
                mistaken=names[worst] if wrong[worst] else None,
                num_mistaken=wrong[worst],
            )
        )
    return tuple(sorted(rows, key=lambda row: row.top1))[:MAX_CLASS_ROWS]
