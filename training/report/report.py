"""figures -> one self-contained HTML page, which loads nothing from anywhere."""

import json
from pathlib import Path

from pipeline import ShardFolder
from pipeline.common.atomic_io import named_output, require_file, write_file
from pipeline.common.errors import ConfigError
from training.report.html import fill_template
from training.report.study_json import digest
from training.report.study_page import Page, make_page
from training.study.finished import DataRuns, read_runs

TEMPLATE = "report.html.j2"


def write_reports(
    folder: Path, *, shards: Path | None, out: Path | None = None, data_note: str = ""
) -> tuple[Path, ...]:
    """Write a page about the runs on each data set of a folder, and its figures as JSON beside it.

    Args:
        folder: Whose subfolders are runs.
        shards: For the contact sheet; None leaves it out. Of several data sets it picks its own.
        out: File to write; `folder/report.html` by default. Of several data sets each page has the
            name of its shards' folder behind it: `report-NAME.html`.
        data_note: What the data is called, for the page's first line.

    Returns:
        The pages' files.

    Raises:
        ConfigError: If there is no finished run, none on the shards, or one note for several data
            sets.
        CheckpointError: If a record or a table is damaged.
    """
    opened = None if shards is None else ShardFolder.open(shards)
    found = _picked(read_runs(folder), folder, opened)
    told = [runs for runs in found if runs.finished]
    if not told:
        raise ConfigError(
            f"a report needs a finished run; got {sum(len(runs.unfinished) for runs in found)} "
            f"unfinished in {folder}. Go on with the same command and --resume."
        )
    if data_note and len(told) > 1:
        raise ConfigError(
            f"--note must be of one data set; got runs on {len(told)} in {folder}. Name the shards "
            "of one with --shards."
        )
    path = out or folder / "report.html"
    paths = [path] if len(told) == 1 else [path.with_stem(f"{path.stem}-{name}") for name in
                                           _names(told)]  # fmt: skip
    with named_output(path, "-o/--output", kind="file"):
        path.parent.mkdir(parents=True, exist_ok=True)
    for page in paths:
        require_file(page, "-o/--output")
    for runs, page in zip(told, paths, strict=True):
        _write(runs, page, opened, data_note)
    return tuple(paths)


def _picked(
    found: tuple[DataRuns, ...], folder: Path, shards: ShardFolder | None
) -> tuple[DataRuns, ...]:
    """Keep the runs on the shards that were named, if the folder has runs on others as well."""
    if shards is None or len(found) == 1:
        return found
    own = tuple(runs for runs in found if runs.fingerprint == shards.manifest.fingerprint)
    if not own:
        raise ConfigError(
            f"--shards must be those of runs in {folder}, which are on {len(found)} data sets; got "
            f"others in {shards.path}. Name those of one, or leave --shards out for a page each."
        )
    return own


def _names(found: list[DataRuns]) -> list[str]:
    """Name data sets by their shards' folders, and by fingerprints too where these are alike."""
    names = [runs.name for runs in found]
    return [
        name if name and names.count(name) == 1 else f"{name}-{runs.fingerprint[:8]}"
        for name, runs in zip(names, found, strict=True)
    ]


def _write(runs: DataRuns, path: Path, shards: ShardFolder | None, data_note: str) -> None:
    page = make_page(runs.finished, unfinished=runs.unfinished, shards=shards, data_note=data_note)
    write_file(path, render_page(page).encode())
    text = json.dumps(digest(page.arms), indent=1)
    write_file(path.with_suffix(".json"), (text + "\n").encode())


def render_page(page: Page) -> str:
    """Fill in the report's template."""
    return fill_template(TEMPLATE, page)
