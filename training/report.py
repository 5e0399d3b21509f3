"""figures -> one self-contained HTML page, which loads nothing from anywhere."""

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.durable import write_file
from pipeline.errors import ConfigError
from training.data import Shards
from training.digest import digest
from training.figures import Spread
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
    """Fill in the template; everything but our own SVGs is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "spread": write_spread, "macs": write_macs, "duration": write_duration,
        "once": _once, "option": _option,
    }  # fmt: skip
    return environment.get_template(TEMPLATE).render(page=page) + "\n"


def write_spread(value: Spread | None, digits: int = 1, alone: str = "") -> str:
    """Write `73.9 ± 0.4`, and what does not apply as a dash.

    Args:
        value: The figure over seeds.
        digits: After the point.
        alone: What follows the figure of one seed, which has no spread.
    """
    if value is None:
        return "–"
    sd = alone if value.sd is None else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{sd}".replace("-", "−")


def write_macs(count: int) -> str:
    """Write a number of multiply-accumulates for people."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def write_duration(seconds: float) -> str:
    """Write a time for people, two units of it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _once(values: Sequence[object]) -> str:
    """Join values, each named once, in their order."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)
