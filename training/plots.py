"""Figures -> SVG, drawn by matplotlib without its global state; equal input gives equal bytes.

Ink is `currentColor`, so that the page's own text colour draws axes and labels, light or dark.
Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import io
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from training.config import SELECTING
from training.evaluate import Evaluation
from training.figures import Arm, Spread, best_arm, differing_options

INK = "#010203"  # stands for currentColor until the SVG is written
GRAY = "#808080"
POLICY_COLOURS = {
    "blend": "#D55E00", "straight-through": "#0072B2", "expected": "#009E73",
    "whole": GRAY, "centre": "#CC79A7", "random": "#E69F00", "mean": "#56B4E9",
}  # fmt: skip
CROP_COLOURS = ("#8C8C8C", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7",
                "#8C6BB1", "#4D4D4D")  # fmt: skip
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 9, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12,
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "xtick.major.size": 3, "ytick.major.size": 3, "lines.linewidth": 1.8,
}  # fmt: skip
NARROW_IN = (5.4, 3.9)
WIDE_IN = (9.6, 4.2)
MAX_CLASSES = 40  # beyond, a confusion matrix cannot be read
NAME_CHARS = 28
MACS_AT_ONCE = 1.05  # arms whose costs are closer than this factor share a column of labels


class _Style(NamedTuple):
    colour: str
    dashes: str
    marker: str


class _Point(NamedTuple):
    label: str
    macs: int
    top1: Spread
    colour: str
    hollow: bool


def learning_curves(arms: Sequence[Arm]) -> str:
    """Draw top-1 on the validation split after each epoch: seeds thin, their mean thick."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for arm, style in zip(arms, _styles(arms), strict=True):
            _draw_curves(axes, arm, style)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation top-1, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)

    return _svg("curves", WIDE_IN, draw)


def _draw_curves(axes: Axes, arm: Arm, style: _Style) -> None:
    by_epoch: dict[int, list[float]] = {}
    for run in arm.runs:
        known = [(epoch.epoch, epoch.val_top1) for epoch in run.record.epochs
                 if epoch.val_top1 is not None]  # fmt: skip
        for epoch, top1 in known:
            by_epoch.setdefault(epoch, []).append(top1)
        if len(arm.runs) > 1:
            axes.plot(*zip(*known, strict=True), color=style.colour, alpha=0.35, linewidth=0.8)
    epochs = sorted(by_epoch)
    means = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
    axes.plot(
        epochs, means, color=style.colour, linestyle=style.dashes, marker=style.marker,
        markersize=3.5, label=_shown(arm.name),
    )  # fmt: skip


def _styles(arms: Sequence[Arm]) -> list[_Style]:
    """Give each arm its policy's colour, and arms of one policy different dashes and markers."""
    styles = []
    for number, arm in enumerate(arms):
        same = sum(other.policy == arm.policy for other in arms[:number])
        styles.append(
            _Style(
                POLICY_COLOURS[arm.policy], DASHES[same % len(DASHES)], MARKERS[same % len(MARKERS)]
            )
        )
    return styles


def glimpse_sizes(arms: Sequence[Arm]) -> str | None:
    """Draw top-1 against the glimpse's side: a line for each policy, baselines across.

    Returns:
        None where no arm selects.
    """
    selecting = [arm for arm in arms if arm.config.selects]
    if not selecting:
        return None
    sizes = sorted({arm.glimpse_px or 0 for arm in selecting})

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (label, members), marker in zip(_series(selecting), MARKERS * 9, strict=False):
            _draw_series(axes, label, members, sizes, marker)
        for arm in arms:
            if arm.policy in ("whole", "centre"):
                _draw_baseline(axes, arm)
        axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.set_xlabel("side of the glimpse, px")
        axes.set_ylabel("validation top-1, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)

    return _svg("glimpses", NARROW_IN, draw)


def _series(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """Split arms into lines along which the glimpse size alone changes."""
    options = [name for name in differing_options(arms) if name not in ("policy", "glimpse_size")]
    series: dict[str, list[Arm]] = {}
    for arm in arms:
        values = [f"{name.replace('_', ' ')} {getattr(arm.config, name)}" for name in options]
        series.setdefault(", ".join([arm.policy, *values]), []).append(arm)
    return list(series.items())


def _draw_series(
    axes: Axes, label: str, arms: Sequence[Arm], sizes: Sequence[int], marker: str
) -> None:
    axes.errorbar(
        [sizes.index(arm.glimpse_px or 0) for arm in arms],
        [arm.top1.mean for arm in arms],
        yerr=[arm.top1.sd or 0 for arm in arms] if any(arm.top1.sd for arm in arms) else None,
        color=POLICY_COLOURS[arms[0].policy], marker=marker, markersize=5, capsize=3,
        label=_shown(label),
    )  # fmt: skip


def _draw_baseline(axes: Axes, arm: Arm) -> None:
    colour, top1 = POLICY_COLOURS[arm.policy], arm.top1
    axes.axhline(top1.mean, color=colour, linestyle="--", linewidth=1.4, label=_shown(arm.name))
    if top1.sd:
        axes.axhspan(top1.mean - top1.sd, top1.mean + top1.sd, color=colour, alpha=0.15, lw=0)


def macs(arms: Sequence[Arm]) -> str:
    """Draw top-1 against the multiply-accumulates that one image costs, proposer included."""
    points = _points(arms)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for point in points:
            axes.errorbar(
                point.macs / 1e6, point.top1.mean, yerr=point.top1.sd, color=point.colour,
                marker="o", markersize=6.5, capsize=3, elinewidth=1,
                markerfacecolor="none" if point.hollow else point.colour,
            )  # fmt: skip
        low, high = (pick(point.macs for point in points) / 1e6 for pick in (min, max))
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, max(high * 1.25, low * 4))
        axes.margins(y=0.12)
        _label_points(axes, points, low * 1.7)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: _minor_tick(value))
        axes.tick_params(axis="x", which="minor", labelsize=8)
        axes.set_xlabel("million multiply-accumulates an image, proposer + classifier")
        axes.set_ylabel("validation top-1, %")

    return _svg("macs", NARROW_IN, draw)


def _minor_tick(value: float) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "235" else ""


def _points(arms: Sequence[Arm]) -> list[_Point]:
    """Place every arm, and what the best selecting arm's classifier does with all its crops."""
    points = [
        _Point(
            arm.name, arm.proposer_macs + arm.classifier_macs, arm.top1,
            POLICY_COLOURS[arm.policy], False,
        ) for arm in arms
    ]  # fmt: skip
    best = best_arm(arm for arm in arms if arm.policy in SELECTING)
    if best is not None:
        num_crops, colour = len(best.crops), POLICY_COLOURS[best.policy]
        every = best.classifier_macs * num_crops
        one = best.proposer_macs + best.classifier_macs
        points += [
            _Point(f"{best.name}: mean of all {num_crops}", every, best.top1_mean, colour, False),
            _Point(f"{best.name}: oracle", one, best.top1_oracle, colour, True),
        ]
    return points


def _label_points(axes: Axes, points: Sequence[_Point], text_x: float) -> None:
    """Name the points: those at the lowest cost in a column beside them, the others in place."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) / 19
    low = min(point.macs for point in points)
    column = sorted(
        (point for point in points if point.macs < low * MACS_AT_ONCE),
        key=lambda point: point.top1.mean,
    )
    heights = spread_apart([point.top1.mean for point in column], gap)
    for point, height in zip(column, heights, strict=True):
        axes.annotate(
            _shown(point.label), (point.macs / 1e6, point.top1.mean), (text_x / 1.35, height),
            fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": point.colour, "shrinkB": 4},
        )  # fmt: skip
    for point in points:
        if point not in column:
            axes.annotate(
                _shown(point.label), (point.macs / 1e6, point.top1.mean), (0, 8), fontsize=8,
                textcoords="offset points", ha="right" if point.macs > 2 * low else "left",
            )  # fmt: skip


def spread_apart(values: Sequence[float], gap: float) -> list[float]:
    """Move sorted values as little as is needed to keep `gap` between neighbours."""
    blocks: list[list[float]] = []  # values of a block stand `gap` apart around their centre
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and _edge(blocks[-2], gap, 1) + gap > _edge(blocks[-1], gap, -1):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [
        statistics.fmean(block) + (place - (len(block) - 1) / 2) * gap
        for block in blocks
        for place in range(len(block))
    ]


def _edge(block: Sequence[float], gap: float, side: int) -> float:
    return statistics.fmean(block) + side * gap * (len(block) - 1) / 2


def crop_shares(arms: Sequence[Arm]) -> str | None:
    """Draw how often each selecting arm chose each crop, as stacked bars.

    Returns:
        None where no arm selects.
    """
    selecting = [arm for arm in arms if arm.config.selects]
    if not selecting:
        return None
    names = list(dict.fromkeys(name for arm in selecting for name in arm.crops))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, name in enumerate(names):
            _stack(axes, selecting, names[:number], name, CROP_COLOURS[number % len(CROP_COLOURS)])
        axes.set_yticks(range(len(selecting)), [_shown(arm.name) for arm in selecting])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        axes.set_xlabel("share of the validation images, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(6, len(names)))

    return _svg("shares", (WIDE_IN[0], 1.3 + 0.38 * len(selecting)), draw)


def _stack(
    axes: Axes, arms: Sequence[Arm], before: Sequence[str], name: str, colour: str
) -> None:
    shares = [dict(zip(arm.crops, arm.shares, strict=True)) for arm in arms]
    widths = [100 * share.get(name, 0) for share in shares]
    lefts = [100 * sum(share.get(other, 0) for other in before) for share in shares]
    axes.barh(range(len(arms)), widths, left=lefts, height=0.72, color=colour, label=_shown(name))
    for row, (width, left) in enumerate(zip(widths, lefts, strict=True)):
        if width >= 6:
            axes.text(left + width / 2, row, f"{width:.0f}", color="white" if _is_dark(colour)
                      else "black", ha="center", va="center_baseline", fontsize=8)  # fmt: skip


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 128


def confusion(done: Evaluation, class_names: Sequence[str]) -> str | None:
    """Draw counts by true and predicted class, each row shaded by its own total.

    Returns:
        None where there are too many classes to read.
    """
    num_classes = len(class_names)
    if num_classes > MAX_CLASSES:
        return None
    side = 2.4 + max(0.30 * num_classes, 1.5)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for true, row in enumerate(done.confusion):
            for predicted, count in enumerate(row):
                if count:
                    _draw_cell(axes, true, predicted, count, count / sum(row), num_classes)
        names = [_shown(name) for name in class_names]
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
        axes.set_xlim(-0.5, num_classes - 0.5)
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return _svg("confusion", (side, side), draw)


def _draw_cell(
    axes: Axes, true: int, predicted: int, count: int, share: float, num_classes: int
) -> None:
    colour = POLICY_COLOURS["straight-through" if true == predicted else "blend"]
    corner = [(predicted + dx, true + dy) for dx, dy in
              ((-0.47, -0.47), (0.47, -0.47), (0.47, 0.47), (-0.47, 0.47))]  # fmt: skip
    axes.fill(*zip(*corner, strict=True), color=colour, alpha=0.06 + 0.54 * share, linewidth=0)
    if num_classes <= 20:
        axes.text(predicted, true, str(count), ha="center", va="center_baseline", fontsize=7.5)


def _shown(name: str) -> str:
    """Shorten a name for a label; matplotlib hides labels that start with `_`."""
    short = name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _svg(name: str, size_in: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draw and write one SVG whose ids no other figure of the page has."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has its own
        figure = Figure(figsize=size_in, layout="constrained")
        draw(figure)
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    return re.sub(r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r"<svg \1", svg, count=1)
