"""Draw what `srp-data bench load` found as an SVG: equal figures, equal bytes.

Text and axes are gray, since an image does not know whether its page is light or dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.bench.loaders.registry import CANVASES, CROPS, LIMIT, memcpy_of
from pipeline.command.results import Row

Bars = dict[str, dict[int, float]]
"""Samples per second by loader and number of workers."""

INK = "#808080"  # legible on white and on near-black
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


def draw_chart(rows: Sequence[Row]) -> str:
    """Draw the medians: one part for each mode, one bar for each number of workers."""
    parts = [(mode, bars) for mode in TITLES if (bars := _bars_of(rows, mode))]
    heights = [BAR_IN * len(bars) + MARGIN_IN for _, bars in parts] or [MARGIN_IN]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
        if parts:
            grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)
            for axes, (mode, bars) in zip(grid[:, 0], parts, strict=True):
                limit = _bars_of(rows, LIMIT).get(f"limits: {memcpy_of(mode)}", {})
                _draw_part(axes, bars, title=TITLES[mode], limit=limit)
        return _to_svg(figure)


def _bars_of(rows: Sequence[Row], mode: str) -> Bars:
    """Collect the rows of a mode that have figures by loader, the fastest loader first."""
    bars: Bars = {}
    for row in rows:
        if row.labels["gives"] == mode and row.median is not None:
            bars.setdefault(row.labels["loader"], {})[int(row.labels["workers"])] = row.median
    return dict(sorted(bars.items(), key=lambda bar: -max(bar[1].values())))


def _draw_part(axes: Axes, bars: Bars, *, title: str, limit: Mapping[int, float]) -> None:
    counts = sorted({workers for rates in bars.values() for workers in rates})
    for number, workers in enumerate(counts):
        offset = (number - (len(counts) - 1) / 2) * BARS["height"]
        places = [place + offset for place in range(len(bars))]
        rates = [of_loader.get(workers, 0.0) for of_loader in bars.values()]
        colours = [OURS if name.startswith("ours") else THEIRS for name in bars]
        alpha = 0.55 if number < len(counts) - 1 else 1.0
        drawn = axes.barh(places, rates, color=colours, alpha=alpha, **BARS)
        axes.bar_label(drawn, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=7)
        if workers in limit:
            _draw_limit(axes, limit[workers], workers)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{title}: samples/s, {_counted(counts)}", fontsize=9, loc="left")


def _counted(counts: Sequence[int]) -> str:
    """Describe the bars of one loader, from the top."""
    if len(counts) == 1:
        return f"{counts[0]} worker{'s'[: counts[0] > 1]}"
    return f"{' and '.join(map(str, counts))} workers (from above)"


def _draw_limit(axes: Axes, rate: float, workers: int) -> None:
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
