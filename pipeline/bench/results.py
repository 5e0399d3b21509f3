"""Measure contenders beside one another: interleaved rounds, medians, ratios, one table.

Neighbours on a machine and its own heat change its speed from minute to minute; rounds in which
everybody has a turn share such changes out evenly.
"""

import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipeline.common.cpus import num_usable
from pipeline.common.progress import Progress
from pipeline.pixels import Pixels


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far pixels lie from the reference, in steps of 0 to 255.

    Attributes:
        mean: Of the absolute differences.
        p999: Their 99.9th percentile.
        largest: Their maximum.
    """

    mean: float
    p999: int
    largest: int


def difference(pairs: Iterable[tuple[Pixels, Pixels]]) -> Difference:
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
class Contender:
    """Somebody to be measured.

    Attributes:
        name: Says what is done and by whom.
        measure: Does the work once and returns samples per second.
        against: Name of the contender to compare it with: its limit, or itself on one worker.
        differences: From the reference, by what is compared; empty where nothing is made.
    """

    name: str
    measure: Callable[[], float]
    against: str | None = None
    differences: Mapping[str, Difference]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one contender.

    Attributes:
        name: The contender's.
        rates: Samples per second, round by round.
        against: The contender's.
        differences: The contender's.
    """

    name: str
    rates: tuple[float, ...]
    against: str | None
    differences: Mapping[str, Difference]

    @property
    def median(self) -> float:
        """Samples per second."""
        return statistics.median(self.rates)


def interleave(contenders: Sequence[Contender], *, rounds: int, progress: Progress) -> list[Row]:
    """Give each contender a turn in each round, after one that does not count."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    total = (rounds + 1) * len(contenders)
    for turn in range(rounds + 1):
        for number, contender in enumerate(contenders):
            progress.update("measuring", turn * len(contenders) + number, total)
            rate = contender.measure()
            if turn:
                rates[contender.name].append(rate)
    progress.update("measuring", total, total)
    return [
        Row(
            name=contender.name,
            rates=tuple(rates[contender.name]),
            against=contender.against,
            differences=contender.differences,
        )
        for contender in contenders
    ]


def ratio(row: Row, rows: Sequence[Row], name: str | None) -> float | None:
    """Divide a row's median by that of the row with this name, if it was measured."""
    medians = {other.name: other.median for other in rows}
    return row.median / medians[name] if name in medians else None


def to_table(rows: Sequence[Row], *, unit: str) -> Table:
    """Lay rows out for people; all are compared with the first.

    Args:
        rows: In order.
        unit: Of the rates.
    """
    table = Table(box=None, pad_edge=False, header_style="", collapse_padding=True)
    table.add_column("row", justify="right")
    table.add_column("what")
    for heading in (unit, "x the first", "x another", "off the reference: mean, 99.9 %, max"):
        table.add_column(heading, justify="right")
    numbers = {row.name: str(number) for number, row in enumerate(rows, start=1)}
    for row in rows:
        share = ratio(row, rows, row.against)
        table.add_row(
            numbers[row.name],
            row.name,
            f"{row.median:,.0f}",
            f"{row.median / rows[0].median:.2f}",
            "-" if share is None else f"{share:.2f} of row {numbers[str(row.against)]}",
            "; ".join(
                f"{what} {found.mean:.3g}, {found.p999}, {found.largest}"
                for what, found in row.differences.items()
            )
            or "-",
        )
    return table


def to_json(rows: Sequence[Row], *, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Lay rows out for programs, with the machine and the versions beside them."""
    return {
        "machine": describe_machine(),
        "setting": dict(setting),
        "rows": [
            {
                "name": row.name,
                "median": row.median,
                "rates": list(row.rates),
                "ratio_to_first": row.median / rows[0].median,
                "against": row.against,
                "ratio_to_it": ratio(row, rows, row.against),
                "differences": {what: asdict(found) for what, found in row.differences.items()},
            }
            for row in rows
        ],
    }


def row_from_json(fields: Mapping[str, Any]) -> Row:
    """Read one of the rows that `to_json` wrote."""
    return Row(
        name=str(fields["name"]),
        rates=tuple(float(rate) for rate in fields["rates"]),
        against=fields["against"],
        differences={
            str(what): Difference(**found) for what, found in fields["differences"].items()
        },
    )


def describe_machine() -> dict[str, str | int]:
    """Say on what the figures were measured."""
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
