"""Draw what `srp-data bench load` found as an SVG: equal figures, equal bytes.

Ink is `currentColor`, so that the page's own text colour draws names and axes, light or dark; an
SVG that is shown as an image has no page around it, so it brings a gray that both can show.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.bench.loaders.registry import CANVASES, CROPS, LIMIT
from pipeline.bench.loaders.rows import LoadRow

INK = "#808080"  # on white and on near-black alike it can be read
OURS = "#0072B2"
THEIRS = "#E69F00"
TITLES = {
    CROPS: "five crops and their glimpses",
    CANVASES: "canvases and glimpses, not cut",
}
BARS: dict[str, Any] = {"height": 0.36, "linewidth": 0}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none", "axes.facecolor": "none",
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 9, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.linewidth": 0.7, "axes.grid": True, "axes.grid.axis": "x", "grid.color": INK,
    "grid.alpha": 0.25, "grid.linewidth": 0.7, "axes.axisbelow": True, "ytick.major.size": 0,
    "svg.hashsalt": "bench-load",
}  # fmt: skip
WIDTH_IN = 7.8
BAR_IN = 0.36
MARGIN_IN = 0.9


def draw_chart(rows: Sequence[LoadRow]) -> str:
    """Draw the medians: one part for each mode, one bar for each number of workers."""
    parts = [(mode, ordered) for mode in TITLES if (ordered := _measured(rows, mode))]
    heights = [BAR_IN * len(shown) + MARGIN_IN for _, shown in parts] or [MARGIN_IN]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
        if parts:
            grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)
            for axes, (mode, shown) in zip(grid[:, 0], parts, strict=True):
                _draw_part(axes, shown, title=TITLES[mode], limits=_limits(rows, mode))
        return _to_svg(figure)


def _measured(rows: Sequence[LoadRow], mode: str) -> list[LoadRow]:
    """Order the rows of a mode that have figures, the fastest first."""
    own = [row for row in rows if row.mode == mode and _best(row)]
    return sorted(own, key=_best, reverse=True)


def _best(row: LoadRow) -> float:
    return max((row.rate(workers) or 0.0 for workers in row.turns), default=0.0)


def _limits(rows: Sequence[LoadRow], mode: str) -> list[LoadRow]:
    return [row for row in rows if row.mode == LIMIT and row.name.endswith(f"memcpy of {mode}")]


def _draw_part(
    axes: Axes, rows: Sequence[LoadRow], *, title: str, limits: Sequence[LoadRow]
) -> None:
    counts = sorted({workers for row in rows for workers in row.turns})
    for number, workers in enumerate(counts):
        offset = (number - (len(counts) - 1) / 2) * BARS["height"]
        places = [place + offset for place in range(len(rows))]
        rates = [row.rate(workers) or 0.0 for row in rows]
        colours = [OURS if row.name.startswith("ours") else THEIRS for row in rows]
        alpha = 0.55 if number < len(counts) - 1 else 1.0
        bars = axes.barh(places, rates, color=colours, alpha=alpha, **BARS)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=7)
        for limit in limits:
            _draw_limit(axes, limit.rate(workers), workers)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{title}: samples/s, {_counted(counts)}", fontsize=9, loc="left")


def _counted(counts: Sequence[int]) -> str:
    """Say which bar is which."""
    if len(counts) == 1:
        return f"{counts[0]} worker{'s'[: counts[0] > 1]}"
    return f"{' and '.join(map(str, counts))} workers (from above)"


def _draw_limit(axes: Axes, rate: float | None, workers: int) -> None:
    if rate is None:
        return
    axes.axvline(rate, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"memcpy, {workers}",
        (rate, 0.01),
        xycoords=("data", "axes fraction"),
        rotation=90,
        fontsize=7,
        ha="right",
        va="bottom",
    )


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r"<svg \1", svg, count=1)
