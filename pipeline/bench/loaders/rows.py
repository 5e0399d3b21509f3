"""What `srp-data bench load` found, as a table and as JSON."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.bench.loaders.protocol import Answer
from pipeline.bench.results import describe_machine


@dataclass(frozen=True, kw_only=True)
class LoadRow:
    """One variant of one loader.

    Attributes:
        name: Peer and variant.
        mode: What was handed over: `crops`, `canvases`, or `limit`.
        problem: Why there are no figures; None if there are.
        version: Of the peer's package.
        bytes_per_sample: Of its layout.
        build_s: Time that building its layout took, s; None where it was there.
        turns: By number of workers, the turns that count.
    """

    name: str
    mode: str
    problem: str | None = None
    version: str = ""
    bytes_per_sample: float | None = None
    build_s: float | None = None
    turns: Mapping[int, tuple[Answer, ...]]

    def rate(self, workers: int) -> float | None:
        """Samples per second, the median of the rounds."""
        return self._median(workers, lambda turn: turn.rate)

    def cpu_s(self, workers: int) -> float | None:
        """Time of all cores per sample, s."""
        return self._median(workers, lambda turn: turn.cpu_s)

    def first_batch_s(self, workers: int) -> float | None:
        """Time to the first batch, s, without imports."""
        return self._median(workers, lambda turn: turn.first_batch_s)

    def import_s(self, workers: int) -> float | None:
        """Time that imports took, s."""
        return self._median(workers, lambda turn: turn.import_s)

    def _median(self, workers: int, part: Callable[[Answer], float | None]) -> float | None:
        if self.problem is not None:
            return None
        found = [value for turn in self.turns.get(workers, ()) if (value := part(turn)) is not None]
        return statistics.median(found) if found else None


def ratio(row: LoadRow, rows: Sequence[LoadRow], reference: str, workers: int) -> float | None:
    """Divide a row's rate by that of the reference in the same mode, if both were measured."""
    own = row.rate(workers)
    others = [
        other.rate(workers)
        for other in rows
        if other.mode == row.mode and other.name.startswith(reference)
    ]
    return own / others[0] if own and others and others[0] else None


def to_table(rows: Sequence[LoadRow], *, reference: str) -> Table:
    """Lay rows out for people.

    Args:
        rows: In order.
        reference: What the name of the row begins with that the others of a mode are compared to.
    """
    counts = sorted({workers for row in rows for workers in row.turns})
    table = Table(box=None, pad_edge=False, header_style="", collapse_padding=True)
    table.add_column("gives")
    table.add_column("loader")
    table.add_column("version")
    headings = [
        *(f"samples/s, {_workers(workers)}" for workers in counts),
        *(f"x {reference}, {_workers(workers)}" for workers in counts),
        *("kB a sample", "build, s", "CPU ms a sample", "import, s"),
        "first batch, s",
    ]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        most = counts[-1] if counts else 1
        cpu_s = row.cpu_s(most)
        cells = [
            *(_number(row.rate(workers), ",.0f") for workers in counts),
            *(_number(ratio(row, rows, reference, workers), ".2f") for workers in counts),
            _number(row.bytes_per_sample and row.bytes_per_sample / 1000, ",.0f"),
            _number(row.build_s, ".1f"),
            _number(cpu_s and cpu_s * 1000, ".2f"),
            _number(row.import_s(most), ".1f"),
            _number(row.first_batch_s(most), ".2f"),
        ]
        version = row.version if row.problem is None else row.problem
        table.add_row(row.mode, row.name, version, *cells)
    return table


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def to_json(
    rows: Sequence[LoadRow], *, reference: str, setting: Mapping[str, Any]
) -> dict[str, Any]:
    """Lay rows out for programs, with the machine and the versions beside them."""
    return {
        "machine": describe_machine(),
        "setting": dict(setting),
        "rows": [
            {
                "name": row.name,
                "mode": row.mode,
                "problem": row.problem,
                "version": row.version,
                "bytes_per_sample": row.bytes_per_sample,
                "build_s": row.build_s,
                "workers": {
                    str(workers): {
                        "median": row.rate(workers),
                        "rates": [turn.rate for turn in turns],
                        "ratio_to_reference": ratio(row, rows, reference, workers),
                        "cpu_s": row.cpu_s(workers),
                        "first_batch_s": row.first_batch_s(workers),
                        "import_s": row.import_s(workers),
                    }
                    for workers, turns in row.turns.items()
                },
            }
            for row in rows
        ],
    }
