"""The audit's chart of accuracy against compute, an SVG drawn by matplotlib."""

from collections.abc import Iterator
from typing import NamedTuple

from matplotlib.figure import Figure

from training.audit.verdict import Audit
from training.report.charts.svg import COLOURS, INK, WIDE_IN, render, shown
from training.study.finished import Spread

GIGA = 1e9
OWN = ", same classifier"  # after the names of rivals that the audit's own classifier makes
BESIDE = ", a classifier of its own"
OWN_LOOKS = {  # by a rival's name: colour and marker
    "the whole image": (COLOURS["whole"], "s"),
    "the centre crop": (COLOURS["centre"], "D"),
    "the best fixed crop": (COLOURS["predecessor"], "v"),
    "a random crop": (COLOURS["random"], "^"),
    "the mean of all": (COLOURS["mean"], "P"),
}
BESIDE_MARKERS = ("X", "h", "p", "<", ">", "8")


class _Mark(NamedTuple):
    label: str
    macs: int
    top1: Spread
    colour: str
    marker: str
    hollow: bool = False


def audit_macs(found: Audit, colour: str) -> str:
    """Draw top-1 against the multiply-accumulates that one image costs, proposer included.

    Args:
        found: All that is drawn.
        colour: Of the arm.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        marks = sorted(_marks(found, colour), key=lambda mark: -mark.top1.mean)
        for mark in marks:
            axes.errorbar(
                mark.macs / GIGA, mark.top1.mean, yerr=mark.top1.sd, color=mark.colour,
                marker=mark.marker, markersize=8, capsize=3, elinewidth=1, linestyle="none",
                markerfacecolor="none" if mark.hollow else mark.colour, label=shown(mark.label),
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.margins(x=0.08, y=0.1)
        axes.set_xlabel("billion multiply-accumulates an image, proposer + classifier")
        axes.set_ylabel("validation top-1, %")
        figure.legend(loc="outside right upper", fontsize=8)

    return render("audit", WIDE_IN, draw)


def _marks(found: Audit, colour: str) -> Iterator[_Mark]:
    yield _Mark("the chosen crop", found.macs, found.top1, colour, "o")
    yield _Mark("any crop right", found.macs, found.any_right, colour, "o", hollow=True)
    if found.oracle is not None:
        yield _Mark("the oracle", found.macs, found.oracle, colour, "s", hollow=True)
    num_beside = 0
    for rival in found.rivals:
        name = rival.name.removesuffix(OWN)
        if name in OWN_LOOKS:
            yield _Mark(name, rival.macs, rival.top1, *OWN_LOOKS[name])
        else:
            marker = BESIDE_MARKERS[num_beside % len(BESIDE_MARKERS)]
            name = f"run {rival.name.removesuffix(BESIDE)}"
            yield _Mark(name, rival.macs, rival.top1, INK, marker)
            num_beside += 1
