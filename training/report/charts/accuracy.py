"""Accuracy against compute, one chart for the study and for the audit: an SVG by matplotlib."""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.audit.verdict import Audit, Rival, RivalKind
from training.report.charts.svg import COLOURS, INK, WIDE_IN, colour_of, render, shown
from training.study.finished import Arm, Spread, best_arm

EQUAL_COST = 1.05  # marks whose costs are closer than this factor share a column of labels
LABEL_GAP = 1 / 19  # of the axis' height, between two labels of the column
RIVAL_COLOURS = {
    RivalKind.WHOLE: "whole", RivalKind.CENTRE: "centre", RivalKind.BEST_FIXED: "predecessor",
    RivalKind.RANDOM: "random", RivalKind.MEAN: "mean",
}  # fmt: skip


class Mark(NamedTuple):
    """One way to spend compute; an empty label names nothing, hollow marks know the answer."""

    label: str
    macs: int
    top1: Spread
    colour: str
    hollow: bool = False


def accuracy_by_macs(marks: Sequence[Mark]) -> str:
    """Draw top-1 against the multiply-accumulates of one image, proposer included."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for mark in marks:
            axes.errorbar(
                mark.macs / 1e6, mark.top1.mean, yerr=mark.top1.sd, color=mark.colour,
                marker="o", markersize=6.5, capsize=3, elinewidth=1,
                markerfacecolor="none" if mark.hollow else mark.colour,
            )  # fmt: skip
        low, high = (pick(mark.macs for mark in marks) / 1e6 for pick in (min, max))
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, max(high * 1.25, low * 4))
        axes.margins(y=0.12)
        _label(axes, marks, text_x=low * 1.26)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: _minor_tick(value))
        axes.tick_params(axis="x", which="minor", labelsize=8)
        axes.set_xlabel("million multiply-accumulates per image, proposer + classifier")
        axes.set_ylabel("validation top-1, %")

    points = ", ".join(
        f"{mark.label} {mark.top1.mean:.1f} % at {mark.macs / 1e6:.4g}"
        for mark in marks
        if mark.label
    )
    alt = f"Top-1 by million multiply-accumulates of an image: {points}."
    return render("macs", WIDE_IN, draw, alt=alt)


def study_marks(arms: Sequence[Arm]) -> list[Mark]:
    """Mark every arm, the mean over all crops, and what the best arm would gain from the answer.

    The best arm of each family is named; colours show the family of the others.
    """
    named = {arm.family: best_arm(a for a in arms if a.family == arm.family) for arm in arms}
    marks = [
        Mark(arm.name if named[arm.family] is arm else "", arm.macs, arm.top1, colour_of(arm))
        for arm in arms
    ]
    best = best_arm(arm for arm in arms if arm.config.selects)
    if best is not None:
        marks += _with_answer(best.top1_any_right, best.top1_oracle, best.macs, colour_of(best))
    # A classifier that has seen all crops alike has the fairest mean.
    source = best_arm(arm for arm in arms if arm.policy == "random") or best
    if source is not None and not any(arm.policy == "mean" for arm in arms):
        num_crops = len(source.crops)
        macs = num_crops * source.classifier_macs
        marks.append(Mark(f"mean of all {num_crops}", macs, source.top1_mean, colour_of(source)))
    return marks


def audit_marks(found: Audit, colour: str) -> list[Mark]:
    """Mark the chosen crop, its rivals, and what it would gain from the answer.

    Args:
        found: The audit.
        colour: The audited arm's.
    """
    rivals = [_rival_mark(rival) for rival in found.rivals]
    chosen = Mark("the chosen crop", found.macs, found.top1, colour)
    return [chosen, *_with_answer(found.any_right, found.oracle, found.macs, colour), *rivals]


def _rival_mark(rival: Rival) -> Mark:
    if rival.kind in RIVAL_COLOURS:
        return Mark(rival.kind, rival.macs, rival.top1, COLOURS[RIVAL_COLOURS[rival.kind]])
    return Mark(f"run {rival.run}", rival.macs, rival.top1, INK)


def _with_answer(
    any_right: Spread, oracle: Spread | None, macs: int, colour: str
) -> Iterator[Mark]:
    yield Mark("any crop right", macs, any_right, colour, hollow=True)
    if oracle is not None:
        yield Mark("oracle", macs, oracle, colour, hollow=True)


def _minor_tick(value: float) -> str:
    return f"{value:g}" if f"{value:.0e}"[0] in "235" else ""


def _label(axes: Axes, marks: Sequence[Mark], *, text_x: float) -> None:
    """Name the marks: those of the lowest cost in a column to their right, the others in place."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * LABEL_GAP
    low = min(mark.macs for mark in marks)
    column = sorted(
        (mark for mark in marks if mark.label and mark.macs < low * EQUAL_COST),
        key=lambda mark: mark.top1.mean,
    )
    heights = spread_apart([mark.top1.mean for mark in column], gap)
    if heights:
        axes.set_ylim(min(bottom, heights[0] - gap), max(top, heights[-1] + gap))
    for mark, height in zip(column, heights, strict=True):
        axes.annotate(
            shown(mark.label), (mark.macs / 1e6, mark.top1.mean), (text_x, height),
            fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": mark.colour, "shrinkB": 4},
        )  # fmt: skip
    for mark in marks:
        if mark.label and mark not in column:
            axes.annotate(
                shown(mark.label), (mark.macs / 1e6, mark.top1.mean), (0, 8), fontsize=8,
                textcoords="offset points", ha="right" if mark.macs > 2 * low else "left",
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
