"""figures -> one self-contained HTML page, which loads nothing from anywhere."""

import json
from pathlib import Path

from pipeline.durable import write_file
from pipeline.errors import ConfigError
from training.data import Shards
from training.digest import digest
from training.html import fill_template
from training.page import Page, make_page
from training.runs import read_runs

TEMPLATE = "report.html.j2"


def write_report(
    folder: Path, *, shards: Path | None, out: Path | None = None, data_note: str = ""
) -> Path:
    """Write one page about all runs in a folder, and its figures as JSON beside it.

    Args:
        folder: Whose subfolders are runs.
        shards: That they were trained on, for the contact sheet; None leaves it out.
        out: File to write; `folder/report.html` by default.
        data_note: What the data is called, for the page's first line.

    Returns:
        The page's file.

    Raises:
        ConfigError: If there is no finished run, or runs are on different data.
        CheckpointError: If a record or a table is damaged.
    """
    runs, unfinished = read_runs(folder)
    if not runs:
        raise ConfigError(
            f"a report needs a finished run; got {len(unfinished)} unfinished in {folder}. "
            "Go on with the same command and --resume."
        )
    opened = None if shards is None else Shards.open(shards)
    path = out or folder / "report.html"
    page = make_page(runs, unfinished=unfinished, shards=opened, data_note=data_note)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, render_page(page).encode())
    text = json.dumps(digest(page.arms), indent=1)
    write_file(path.with_suffix(".json"), (text + "\n").encode())
    return path


def render_page(page: Page) -> str:
    """Fill in the report's template."""
    return fill_template(TEMPLATE, page)
