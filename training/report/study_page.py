"""Finished runs -> one self-contained HTML page for each data set, and its figures as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from pipeline import ShardFolder
from pipeline.common.atomic_io import named_output, require_file, write_file
from pipeline.common.errors import ConfigError, SrpError
from training.audit.saliency import read_maps
from training.data.processes import Process
from training.report.charts import plots
from training.report.charts.accuracy import accuracy_by_macs, study_marks
from training.report.gallery import Gallery, make_gallery, pick_rows, why_no_gallery
from training.report.html import fill_template
from training.report.study_json import study_json
from training.run.load import load_model
from training.saved.folder import RunPaths
from training.saved.record import DataRecord, RunRecord
from training.study.finished import (
    Arm,
    DataRuns,
    FinishedRun,
    best_arm,
    differing_options,
    group_arms,
    read_runs,
)
from training.study.sentences import describe_data, is_drawn, summarise_arms

TEMPLATE = "study.html.j2"
MAX_CLASS_ROWS = 40  # beyond, the classes with the lowest accuracy


@dataclass(frozen=True, kw_only=True)
class Charts:
    """SVGs by matplotlib, which escaped their text: the only markup that the page does not."""

    curves: Markup
    glimpses: Markup | None
    macs: Markup
    shares: Markup | None
    confusion: Markup | None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A run's accuracy on one class, and what it most often takes that class for, if ever."""

    name: str
    num_samples: int
    top1: float
    mistaken: str | None
    num_mistaken: int


class Answer(NamedTuple):
    """Whether choosing is worth it on a data set, whose name is empty where it is the only one."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """All that the template shows.

    Attributes:
        data_line: The data in one sentence.
        is_drawn: Whether the images are srp's own drawings.
        summary: What came out, in sentences.
        answers: The first sentence for each data set that is reported together with this one.
        data: Shared by all runs.
        arms: In order.
        best: The most accurate arm that chooses, if one chooses.
        unfinished: Records without an evaluation.
        options: Names of the options that differ between arms.
        charts: Drawn.
        gallery: What the best arm's best run looked at, if it can be shown.
        no_gallery: Why it cannot.
        run: The most accurate run.
        classes: Its accuracy on each class.
    """

    data_line: str
    is_drawn: bool
    summary: tuple[str, ...]
    answers: tuple[Answer, ...]
    data: DataRecord
    arms: tuple[Arm, ...]
    best: Arm | None
    unfinished: tuple[RunRecord, ...]
    options: tuple[str, ...]
    charts: Charts
    gallery: Gallery | None
    no_gallery: str | None
    run: FinishedRun
    classes: tuple[ClassRow, ...]

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """All finished runs."""
        return tuple(run for arm in self.arms for run in arm.runs)


class Data(NamedTuple):
    """The runs on one data set, and where their page goes.

    `note` is what the user calls it; `shards` are opened for its pictures, if they were given.
    """

    runs: DataRuns
    file: Path
    note: str
    shards: ShardFolder | None

    @property
    def label(self) -> str:
        """The data set's name for people."""
        return self.note or self.runs.name


def write_study(
    folders: Sequence[Path],
    *,
    shards: Sequence[str | Path] = (),
    out: Path | None = None,
    notes: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write a page about the runs on each data set of some folders, and its figures as JSON.

    Each page begins with the answers for all of them.

    Args:
        folders: Their subfolders are runs.
        shards: For the pictures. Of several data sets in a folder they pick their own.
        out: File to write; `report.html` in each folder by default. With several data sets the name
            of the shards' folder is added to each page: `report-NAME.html`.
        notes: Names of the folders' data, for the pages' first lines; none, or one for each folder.

    Returns:
        The pages' files.

    Raises:
        ConfigError: If there is no finished run, none on the shards, or not one note for each data
            set.
        CheckpointError: If a record or a table is damaged.
    """
    if notes and len(notes) != len(folders):
        raise ConfigError(
            f"--note must name the data of each RUNS; got {len(notes)} for {len(folders)}. Give "
            "one for each, in their order."
        )
    opened = [ShardFolder.open(path) for path in shards]
    found = {folder: _find(folder, opened, is_named=bool(notes)) for folder in folders}
    data = _place(found, opened, out=out, notes=dict(zip(folders, notes, strict=False)))
    if len({each.file for each in data}) < len(data):
        raise ConfigError(
            f"-o/--output must be one page for each RUNS; got {out} for several on the same "
            "shards. Leave it out: each has its own."
        )
    for each in data:
        with named_output(each.file, "-o/--output", kind="file"):
            each.file.parent.mkdir(parents=True, exist_ok=True)
        require_file(each.file, "-o/--output")
    pages = [_make(each) for each in data]
    answers = tuple(
        Answer(each.label if len(data) > 1 else "", page.summary[0])
        for each, page in zip(data, pages, strict=True)
    )
    for each, page in zip(data, pages, strict=True):
        _write(replace(page, answers=answers), each.file)
    return tuple(each.file for each in data)


def _place(
    found: dict[Path, list[DataRuns]],
    opened: Sequence[ShardFolder],
    *,
    out: Path | None,
    notes: dict[Path, str],
) -> list[Data]:
    """Decide where the page of each data set goes, and which shards are its own."""
    every = [runs for group in found.values() for runs in group]
    names, data = iter(_names(every)), []
    for folder, group in found.items():
        path = out or folder / "report.html"
        for runs in group:
            name = next(names)
            file = (
                path.with_stem(f"{path.stem}-{name}") if len(every if out else group) > 1 else path
            )
            own = _shards_of(runs, opened, is_only=len(every) == 1)
            data.append(Data(runs, file, notes.get(folder, ""), own))
    return data


def _find(folder: Path, opened: Sequence[ShardFolder], *, is_named: bool) -> list[DataRuns]:
    """Read a folder's finished runs, by data set; a name can be that of one alone.

    Where it has runs on several, only those on the given shards are kept.
    """
    found = read_runs(folder)
    if opened and len(found) > 1:
        wanted = {each.manifest.fingerprint for each in opened}
        own = tuple(runs for runs in found if runs.fingerprint in wanted)
        if not own:
            raise ConfigError(
                f"--shards must be those of runs in {folder}, which are on {len(found)} data sets; "
                f"got others in {', '.join(each.place for each in opened)}. Name those of one, "
                "or leave --shards out for a page each."
            )
        found = own
    shown = [runs for runs in found if runs.finished]
    if not shown:
        raise ConfigError(
            f"a report needs a finished run; got {sum(len(runs.unfinished) for runs in found)} "
            f"unfinished in {folder}. Finish one: type its command again with --resume."
        )
    if is_named and len(shown) > 1:
        raise ConfigError(
            f"--note must name one data set; got runs on {len(shown)} in {folder}. Pick one with "
            "--shards."
        )
    return shown


def _shards_of(
    runs: DataRuns, opened: Sequence[ShardFolder], *, is_only: bool
) -> ShardFolder | None:
    """Give the runs' own shards; others only where nothing else could be meant."""
    own = [each for each in opened if each.manifest.fingerprint == runs.fingerprint]
    return next(iter(own or (opened if is_only else ())), None)


def _names(found: list[DataRuns]) -> list[str]:
    """Name data sets by their shards' folders, and by fingerprints too where these are alike."""
    names = [runs.name for runs in found]
    return [
        name if name and names.count(name) == 1 else f"{name}-{runs.fingerprint[:8]}"
        for name, runs in zip(names, found, strict=True)
    ]


def _make(data: Data) -> StudyPage:
    return make_study_page(
        data.runs.finished,
        unfinished=data.runs.unfinished,
        shards=data.shards,
        data_note=data.note,
    )


def _write(page: StudyPage, path: Path) -> None:
    write_file(path, fill_template(TEMPLATE, page).encode())
    text = json.dumps(study_json(page.arms), indent=1)
    write_file(path.with_suffix(".json"), (text + "\n").encode())


def make_study_page(
    runs: Sequence[FinishedRun],
    *,
    unfinished: tuple[RunRecord, ...] = (),
    shards: ShardFolder | None = None,
    data_note: str = "",
) -> StudyPage:
    """Turn finished runs into all that the page shows."""
    arms = group_arms(runs)
    data = runs[0].record.data
    best = best_arm(arm for arm in arms if arm.config.selects)
    run = max(runs, key=lambda run: run.evaluation.top1)
    gallery, no_gallery = _gallery(best, shards)
    summary = summarise_arms(arms)
    return StudyPage(
        data_line=describe_data(data, data_note),
        is_drawn=is_drawn(data),
        summary=summary,
        answers=(Answer("", summary[0]),),
        data=data,
        arms=arms,
        best=best,
        unfinished=unfinished,
        options=differing_options(arms),
        charts=_draw_charts(arms, run),
        gallery=gallery,
        no_gallery=no_gallery,
        run=run,
        classes=_class_rows(run),
    )


def _gallery(arm: Arm | None, shards: ShardFolder | None) -> tuple[Gallery | None, str | None]:
    """Show what an arm's most accurate run looked at, or say why that cannot be shown."""
    if arm is None:
        return None, "No run chose its crop, so there is no choice to show."
    run = arm.best_run
    why_none = why_no_gallery(run, shards)
    if why_none is not None or shards is None or run.logits is None:
        return None, why_none
    rows, maps_BMN, note = pick_rows(shards.reader("val").keys, run.logits), None, None
    try:
        model = load_model(RunPaths(folder=run.folder), shards, workers=1, process=Process())
        maps_BMN = read_maps(model.eval(), shards, rows.all, Process())
    except SrpError:  # figures need no checkpoint, and it may be deleted, to save room
        note = (
            "The run’s checkpoint is gone, or of an older version, so its map, if any, is missing."
        )
    gallery = make_gallery(run, run.logits, shards, rows=rows, maps_BMN=maps_BMN, note=note)
    return gallery, None


def _draw_charts(arms: Sequence[Arm], run: FinishedRun) -> Charts:
    names = run.record.data.class_names
    return Charts(
        curves=Markup(plots.learning_curves(arms)),  # noqa: S704 matplotlib escaped its text
        glimpses=_optional(plots.glimpse_sizes(arms)),
        macs=Markup(accuracy_by_macs(study_marks(arms))),  # noqa: S704 matplotlib escaped its text
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
