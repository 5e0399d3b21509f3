"""Rows of a bench: measured in turns, shown as one table, written as one JSON.

The speed of a machine changes from minute to minute, with its heat and its other users. Rounds in
which every contender has a turn spread such changes evenly.
"""

import json
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.command.console import console
from pipeline.common.cpus import num_usable
from pipeline.common.progress import Progress

WIDTH = 160  # of a table, at least


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far pixels are from the reference, in steps of 0 to 255.

    Attributes:
        mean: Mean of the absolute differences.
        p999: Their 99.9th percentile.
        largest: Their maximum.
    """

    mean: float
    p999: int
    largest: int


def difference(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Difference:
    """Compare arrays of bytes with their references, all together."""
    counts = np.zeros(256, np.int64)
    for ours, theirs in pairs:
        off = np.abs(ours.astype(np.int16) - theirs)
        counts += np.bincount(off.ravel(), minlength=256)
    steps = np.arange(256)
    shares = counts.cumsum() / counts.sum()
    return Difference(
        mean=float((counts * steps).sum() / counts.sum()),
        p999=int(np.searchsorted(shares, 0.999)),
        largest=int(steps[counts > 0].max()),
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table, and one object of its JSON.

    Attributes:
        name: Names the row in `ratios` of others; unique.
        labels: What stands before the figures, by heading; the name if there is none.
        problem: Why there are no figures, or None.
        rates: Samples per second, round by round.
        median: Median of the rates.
        ratios: Median divided by that of other rows, by their names.
        figures: What else was measured, by heading with the unit.
        differences: From the reference, by what is compared.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    rates: tuple[float, ...] = ()
    median: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)


class Turn(NamedTuple):
    """What one turn of a contender found: samples per second, other figures, or a problem."""

    rate: float | None = None
    figures: Mapping[str, float] = {}
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One thing that is measured, in turn with the others.

    Attributes:
        row: What is known before the first turn; with a problem it has no turn.
        measure: Does the work once.
        against: Names of the rows whose medians this one's is divided by.
    """

    row: Row
    measure: Callable[[], Turn]
    against: tuple[str, ...] = ()


def interleave(contenders: Sequence[Contender], *, rounds: int, progress: Progress) -> list[Row]:
    """Give each contender one warm-up turn, and then one turn in each round.

    A contender that reports a problem has no more turns.
    """
    turns: list[list[Turn]] = [[] for _ in contenders]
    problems = [contender.row.problem for contender in contenders]
    total = (rounds + 1) * len(contenders)
    for done in range(total):
        progress.update("measuring", done, total)
        number = done % len(contenders)
        if problems[number] is None:
            turn = contenders[number].measure()
            turns[number].append(turn)
            problems[number] = turn.problem
    progress.update("measuring", total, total)
    rows = []
    for contender, own, problem in zip(contenders, turns, problems, strict=True):
        failed = replace(contender.row, problem=problem)
        rows.append(failed if problem else with_medians(contender.row, own[1:]))
    medians = {row.name: row.median for row in rows}
    return [
        replace(row, ratios=_ratios(row, contender.against, medians))
        for row, contender in zip(rows, contenders, strict=True)
    ]


def with_medians(row: Row, turns: Sequence[Turn]) -> Row:
    """Add the rates and figures of the turns that count."""
    rates = tuple(turn.rate for turn in turns if turn.rate is not None)
    names = dict.fromkeys(name for turn in turns for name in turn.figures)
    found = {
        name: statistics.median(turn.figures[name] for turn in turns if name in turn.figures)
        for name in names
    }
    median = statistics.median(rates) if rates else None
    return replace(row, rates=rates, median=median, figures={**row.figures, **found})


def _ratios(
    row: Row, names: Iterable[str], medians: Mapping[str, float | None]
) -> dict[str, float]:
    return {
        name: row.median / other
        for name in names
        if row.median is not None and (other := medians.get(name))
    }


def show_rows(
    rows: Sequence[Row],
    *,
    unit: str = "samples/s",
    setting: Mapping[str, Any] | None = None,
    as_json: bool = False,
    path: Path | None = None,
) -> None:
    """Print the table, or the figures for programs; write the figures to a file as well."""
    text = json.dumps(to_json(rows, setting=setting or {}), indent=1)
    if as_json:
        click.echo(text)
    else:
        screen = Console(width=max(WIDTH, console().width), markup=False, highlight=False)
        screen.print(to_table(rows, unit=unit))
    if path:
        path.write_text(f"{text}\n", encoding="utf-8")


def to_table(rows: Sequence[Row], *, unit: str = "samples/s") -> Table:
    """Lay rows out for people, one column for each figure that any of them has.

    Args:
        rows: In order.
        unit: Unit of the rates.
    """
    numbers = {row.name: str(number) for number, row in enumerate(rows, start=1)}
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [_cells(row, unit, numbers, figures) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="")
    shown = [heading for heading in lines[0] if any(cells[heading] for cells in lines)]
    for heading in shown:
        is_text = heading in rows[0].labels or heading in ("what", "problem")
        table.add_column(heading, justify="left" if is_text else "right")
    for cells in lines:
        table.add_row(*(cells[heading] or "-" for heading in shown))
    return table


def _cells(
    row: Row, unit: str, numbers: Mapping[str, str], figures: Sequence[str]
) -> dict[str, str]:
    """Give a row's text by heading."""
    ratios = (f"{ratio:.2f} x row {numbers[name]}" for name, ratio in row.ratios.items())
    differences = (
        f"{what} {found.mean:.3g}, {found.p999}, {found.largest}"
        for what, found in row.differences.items()
    )
    return {
        "row": numbers[row.name],
        **(row.labels or {"what": row.name}),
        unit: number(row.median),
        "compared": ", ".join(ratios),
        **{heading: number(row.figures.get(heading)) for heading in figures},
        "off the reference: mean, 99.9 %, max": "; ".join(differences),
        "problem": row.problem or "",
    }


def number(value: float | None) -> str:
    """Write a figure with three digits or more; nothing for none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def to_json(rows: Sequence[Row], *, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Lay rows out for programs, with the machine and what was asked for."""
    return {
        "machine": describe_machine(),
        "setting": dict(setting),
        "rows": [asdict(row) for row in rows],
    }


def rows_from_json(text: str | bytes) -> list[Row]:
    """Read the rows that `to_json` laid out.

    Raises:
        msgspec.MsgspecError: If the text holds none.
    """
    return msgspec.json.decode(text, type=_Figures).rows


class _Figures(msgspec.Struct):
    rows: list[Row]


def describe_machine() -> dict[str, str | int]:
    """Name the hardware and software that the figures belong to."""
    return {
        "cpu": _cpu_model(),
        "cores": num_usable(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numba": version("numba"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
