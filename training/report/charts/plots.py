"""The report's charts of accuracy and choice, each an SVG drawn by matplotlib."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.report.charts.svg import COLOURS, NARROW_IN, WIDE_IN, colour_of, render, shown
from training.score.metrics import Evaluation
from training.study.finished import Arm

CROP_COLOURS = {
    "full": "#8C8C8C", "top-left": "#0072B2", "top-right": "#56B4E9", "bottom-left": "#D55E00",
    "bottom-right": "#E69F00", "centre": "#009E73",
}  # fmt: skip
OTHER_CROPS = ("#CC79A7", "#8C6BB1", "#A6761D", "#4D4D4D")
ARMS_TOGETHER = 8  # more curves than these are drawn in a panel for each family
PANELS_ABREAST = 3
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
MAX_CLASSES = 40  # beyond, a confusion matrix cannot be read


class _Style(NamedTuple):
    colour: str
    dashes: str
    marker: str


def learning_curves(arms: Sequence[Arm]) -> str:
    """Draw top-1 on the validation split after each epoch: seeds thin, their mean thick."""
    panels = [("", list(arms))] if len(arms) <= ARMS_TOGETHER else _panels(arms)
    abreast = min(len(panels), PANELS_ABREAST)
    rows = -(-len(panels) // abreast)
    size_in = (WIDE_IN[0], WIDE_IN[1] if rows == 1 else 2.9 * rows)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, abreast, sharex=True, sharey=True, squeeze=False).flat
        for axes, (title, members) in zip(grid, panels, strict=False):
            for arm, style in zip(members, _styles(members), strict=True):
                _draw_curves(axes, arm, style)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_tick_params(labelbottom=True)
            if title:
                axes.set_title(shown(title), loc="left", fontsize=9, fontweight="bold")
                axes.legend(loc="lower right", fontsize=7)
            else:
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("validation top-1, %", fontsize=9)

    ends = ", ".join(f"{arm.name} {arm.top1.mean:.1f} %" for arm in arms)
    return render("curves", size_in, draw, alt=f"Lines of validation top-1 by epoch, to: {ends}.")


def _panels(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """Give each family that selects a panel, and the others one together."""
    fixed = [arm for arm in arms if not arm.config.selects]
    others = [("no choice", fixed)] if fixed else []
    return [*_series([arm for arm in arms if arm.config.selects]), *others]


def _draw_curves(axes: Axes, arm: Arm, style: _Style) -> None:
    by_epoch: dict[int, list[float]] = {}
    for run in arm.runs:
        before = run.record.config.num_explored  # epochs of the stages before these
        known = [(before + epoch.epoch, epoch.val_top1) for epoch in run.record.epochs
                 if epoch.val_top1 is not None]  # fmt: skip
        for epoch, top1 in known:
            by_epoch.setdefault(epoch, []).append(top1)
        if len(arm.runs) > 1 and known:
            axes.plot(*zip(*known, strict=True), color=style.colour, alpha=0.35, linewidth=0.8)
    epochs = sorted(by_epoch)
    means = [statistics.fmean(by_epoch[epoch]) for epoch in epochs]
    axes.plot(
        epochs, means, color=style.colour, linestyle=style.dashes, marker=style.marker,
        markersize=3.5, label=shown(arm.name),
    )  # fmt: skip


def _styles(arms: Sequence[Arm]) -> list[_Style]:
    """Give each arm its family's colour, and arms of one colour different dashes and markers."""
    styles = []
    for number, arm in enumerate(arms):
        same = sum(colour_of(other) == colour_of(arm) for other in arms[:number])
        styles.append(
            _Style(colour_of(arm), DASHES[same % len(DASHES)], MARKERS[same % len(MARKERS)])
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
        series = _series(selecting)
        for number, (label, members) in enumerate(series):
            # Side by side, so that error bars of one size do not overlap.
            offset = 0.05 * (number - (len(series) - 1) / 2)
            places = [sizes.index(arm.glimpse_px or 0) + offset for arm in members]
            _draw_series(axes, label, members, places, MARKERS[number % len(MARKERS)])
        for arm in arms:
            if arm.policy in ("whole", "centre"):
                _draw_baseline(axes, arm)
        axes.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
        axes.set_xlim(-0.4, len(sizes) - 0.6)
        axes.set_xlabel("side of the glimpse, px")
        axes.set_ylabel("validation top-1, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)

    points = ", ".join(f"{arm.name} {arm.glimpse_px} px {arm.top1.mean:.1f} %" for arm in selecting)
    return render("glimpses", NARROW_IN, draw, alt=f"Top-1 by the glimpse’s side: {points}.")


def _series(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """Split arms into lines along which the glimpse size alone changes."""
    series: dict[str, list[Arm]] = {}
    for arm in arms:
        series.setdefault(arm.family, []).append(arm)
    return list(series.items())


def _draw_series(
    axes: Axes, label: str, arms: Sequence[Arm], places: Sequence[float], marker: str
) -> None:
    axes.errorbar(
        places,
        [arm.top1.mean for arm in arms],
        yerr=[arm.top1.sd or 0 for arm in arms] if any(arm.top1.sd for arm in arms) else None,
        color=colour_of(arms[0]), marker=marker, markersize=5, capsize=3,
        label=shown(label),
    )  # fmt: skip


def _draw_baseline(axes: Axes, arm: Arm) -> None:
    colour, top1 = colour_of(arm), arm.top1
    axes.axhline(top1.mean, color=colour, linestyle="--", linewidth=1.4, label=shown(arm.name))
    if top1.sd:
        axes.axhspan(top1.mean - top1.sd, top1.mean + top1.sd, color=colour, alpha=0.15, lw=0)


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
            colour = CROP_COLOURS.get(name, OTHER_CROPS[number % len(OTHER_CROPS)])
            _stack(axes, selecting, names[:number], name, colour)
        axes.set_yticks(range(len(selecting)), [shown(arm.name) for arm in selecting])
        axes.set_ylim(len(selecting) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        axes.set_xlabel("share of the validation images, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=6, columnspacing=1.2)

    most = ", ".join(
        f"{arm.name} {arm.crops[arm.shares.index(max(arm.shares))]} {100 * max(arm.shares):.0f} %"
        for arm in selecting
    )
    size_in = (WIDE_IN[0], 1.3 + 0.38 * len(selecting))
    return render("shares", size_in, draw, alt=f"Bars of the crops’ shares. Most often: {most}.")


def _stack(axes: Axes, arms: Sequence[Arm], before: Sequence[str], name: str, colour: str) -> None:
    shares = [dict(zip(arm.crops, arm.shares, strict=True)) for arm in arms]
    widths = [100 * share.get(name, 0) for share in shares]
    lefts = [100 * sum(share.get(other, 0) for other in before) for share in shares]
    axes.barh(range(len(arms)), widths, left=lefts, height=0.72, color=colour, label=shown(name))
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
        names = [shown(name) for name in class_names]
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
        axes.set_xlim(-0.5, num_classes - 0.5)
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    right = sum(row[true] for true, row in enumerate(done.confusion))
    alt = f"Confusion matrix: {right} of {done.num_samples} images are on the diagonal."
    return render("confusion", (side, side), draw, alt=alt)


def _draw_cell(
    axes: Axes, true: int, predicted: int, count: int, share: float, num_classes: int
) -> None:
    colour = COLOURS["straight-through" if true == predicted else "predecessor"]
    corner = [(predicted + dx, true + dy) for dx, dy in
              ((-0.47, -0.47), (0.47, -0.47), (0.47, 0.47), (-0.47, 0.47))]  # fmt: skip
    axes.fill(*zip(*corner, strict=True), color=colour, alpha=0.06 + 0.54 * share, linewidth=0)
    if num_classes <= 20:
        axes.text(predicted, true, str(count), ha="center", va="center_baseline", fontsize=7.5)
