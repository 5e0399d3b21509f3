"""How every figure of the report looks, and how it becomes an SVG: equal input, equal bytes.

Ink is `currentColor`, so that the page's own text colour draws axes and labels, light or dark.
Colours are from Okabe and Ito's palette, which colour-blind readers can tell apart.
"""

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from training.study.finished import Arm

INK = "#010203"  # stands for currentColor until the SVG is written
GRAY = "#808080"
COLOURS = {  # by an arm's family, or else by its policy
    "predecessor": "#D55E00", "blend": "#E69F00", "straight-through": "#0072B2",
    "expected": "#009E73", "distilled": "#8C6BB1", "whole": GRAY, "centre": "#CC79A7",
    "random": "#A6761D", "mean": "#56B4E9",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none", "axes.facecolor": "none",
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 9, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12,
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "xtick.major.size": 3, "ytick.major.size": 3, "lines.linewidth": 1.8,
}  # fmt: skip
NARROW_IN = (5.4, 3.9)
WIDE_IN = (7.8, 4.1)
NAME_CHARS = 28


def colour_of(arm: Arm) -> str:
    """Give an arm the colour of its family, or else of its policy."""
    return COLOURS.get(arm.family, COLOURS[arm.policy])


def shown(name: str) -> str:
    """Shorten a name for a label; matplotlib hides labels that start with `_`."""
    short = name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"
    return f" {short}" if short.startswith("_") else short


def render(
    name: str, size_in: tuple[float, float], draw: Callable[[Figure], None], *, alt: str
) -> str:
    """Draw and write one SVG.

    Args:
        name: Makes its ids those of no other figure of the page.
        size_in: Width and height, inches.
        draw: Fills the figure.
        alt: What the chart says, for readers who do not see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has its own
        figure = Figure(figsize=size_in, layout="constrained")
        draw(figure)
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    named = f'<svg role="img" aria-label="{html.escape(alt)}" '
    svg = re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", named, 1)
