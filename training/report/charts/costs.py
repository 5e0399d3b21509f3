"""The report's chart of accuracy against compute, an SVG drawn by matplotlib."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.report.charts.svg import NARROW_IN, colour_of, render, shown
from training.study.finished import Arm, Spread, best_arm

MACS_AT_ONCE = 1.05  # arms whose costs are closer than this factor share a column of labels


class _Point(NamedTuple):
    label: str
    macs: int
    top1: Spread
    colour: str
    hollow: bool


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

    return render("macs", NARROW_IN, draw)


def _minor_tick(value: float) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "235" else ""


def _points(arms: Sequence[Arm]) -> list[_Point]:
    """Place every arm, the mean of all crops, and what knowing the answer would bring the best one.

    That is any crop right, and the oracle where there is one. The best arm of each family is
    named; colours tell of which family the others are.
    """
    families = {arm.family: best_arm(a for a in arms if a.family == arm.family) for arm in arms}
    points = [
        _Point(
            arm.name if families[arm.family] is arm else "", _cost(arm), arm.top1,
            colour_of(arm), False,
        ) for arm in arms
    ]  # fmt: skip
    best = best_arm(arm for arm in arms if arm.config.selects)
    if best is not None:
        known = {"any crop right": best.top1_any_right, "oracle": best.top1_oracle}
        points += [
            _Point(label, _cost(best), top1, colour_of(best), True)
            for label, top1 in known.items() if top1 is not None
        ]  # fmt: skip
    # A classifier that has seen all crops alike has the fairest mean.
    source = best_arm(arm for arm in arms if arm.policy == "random") or best
    if source is not None and not any(arm.policy == "mean" for arm in arms):
        num_crops = len(source.crops)
        label = f"mean of all {num_crops}"
        every = source.classifier_macs * num_crops
        points.append(_Point(label, every, source.top1_mean, colour_of(source), False))
    return points


def _cost(arm: Arm) -> int:
    return arm.proposer_macs + arm.classifier_macs


def _label_points(axes: Axes, points: Sequence[_Point], text_x: float) -> None:
    """Name the points: those at the lowest cost in a column beside them, the others in place."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) / 19
    low = min(point.macs for point in points)
    column = sorted(
        (point for point in points if point.label and point.macs < low * MACS_AT_ONCE),
        key=lambda point: point.top1.mean,
    )
    heights = spread_apart([point.top1.mean for point in column], gap)
    if heights:
        axes.set_ylim(min(bottom, heights[0] - gap), max(top, heights[-1] + gap))
    for point, height in zip(column, heights, strict=True):
        axes.annotate(
            shown(point.label), (point.macs / 1e6, point.top1.mean), (text_x / 1.35, height),
            fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": point.colour, "shrinkB": 4},
        )  # fmt: skip
    for point in points:
        if point.label and point not in column:
            axes.annotate(
                shown(point.label), (point.macs / 1e6, point.top1.mean), (0, 8), fontsize=8,
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
