"""One picture of what an audit found: images, where the proposer looks, and what each rival sees.

A column is an image, a row a way to choose what the classifier sees, with its top-1 on all images.
The images are the gallery's first, drawn by the hash of their keys. Axes: N samples, K candidates.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from PIL.ImageColor import getrgb
from torch import Tensor

from pipeline import CropLayout, Sample
from training.audit.run import Audited
from training.model.classifier import candidate_indices
from training.report.charts.svg import shown
from training.score.crop_logits import CropLogits
from training.score.pictures import (
    BOX,
    COLOURS,
    MAP_OPACITY,
    canvas_picture,
    crop_picture,
    scale_of,
)
from training.study.finished import FinishedRun

NUM_IMAGES = 6
CELL_IN = 1.02
LABEL_IN = 1.5
CAPTION_IN = 0.2  # under each cell
CAPTION_CHARS = 18
DPI = 100
NUM_COLOURS = 256  # a palette keeps the PNG below 300 KB
RANDOM_SEED = 0
RIGHT, WRONG = "#00734f", "#b34700"  # 5:1 and more on white


class Choice(NamedTuple):
    """A way to choose: its top-1 in %, and per sample the crop (in the shards) and the class."""

    label: str
    top1: float
    crops: list[int]
    predicted: list[int]


def draw_result(
    audited: Audited, logits: CropLogits, rows: Sequence[int], maps_BMN: Tensor | None
) -> bytes:
    """Draw the picture as PNG.

    Args:
        audited: Its run and shards are drawn.
        logits: That run's logits.
        rows: Samples of the validation split; the first `NUM_IMAGES` are drawn.
        maps_BMN: The proposer's maps of these samples, in logits, if it has any.
    """
    reader, names = audited.shards.reader("val"), audited.shards.manifest.class_names
    samples = [reader.read(row) for row in rows[:NUM_IMAGES]]
    choices = rank_choices(audited, logits)
    width, height = LABEL_IN + CELL_IN * len(samples), (CELL_IN + CAPTION_IN) * (1 + len(choices))
    with mpl.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        figure.subplots_adjust(
            left=LABEL_IN / width, right=1, top=1, bottom=CAPTION_IN / height, wspace=0.06,
            hspace=CAPTION_IN / CELL_IN + 0.06,
        )  # fmt: skip
        grid = figure.subplots(1 + len(choices), len(samples), squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        _label(grid[0][0], "image,\nchosen crop outlined")
        for number, (axes, row, sample) in enumerate(zip(grid[0], rows, samples, strict=False)):
            _draw_canvas(axes, sample, audited.shards.crop_layout, choices[0].crops[row])
            if maps_BMN is not None:
                _draw_map(axes, maps_BMN, number)
            _caption(axes, names[sample.label], "black")
        for cells, choice in zip(grid[1:], choices, strict=True):
            _label(cells[0], f"{choice.label}\n{choice.top1:.1f} % right")
            for axes, row, sample in zip(cells, rows, samples, strict=False):
                axes.imshow(crop_picture(sample.crops[choice.crops[row]]))
                predicted = choice.predicted[row]
                mark, colour = ("✓", RIGHT) if predicted == sample.label else ("✗", WRONG)
                _caption(axes, f"{mark} {names[predicted]}", colour)
        return _png(figure)


def rank_choices(audited: Audited, logits: CropLogits) -> list[Choice]:
    """List the choice, then its rivals of equal cost, the whole image by its own run if any."""
    run = audited.run
    done, num_samples = run.evaluation, len(logits.labels_N)
    best = int(logits.right_NK.sum(0).argmax())
    random_N = np.random.default_rng(RANDOM_SEED).integers(len(done.crops), size=num_samples)
    own = [
        ("chosen crop", done.top1, logits.chosen_N),
        (f"always {done.crops[best]}", done.top1_crops[best], logits.labels_N.new_tensor(best)),
        ("random crop", done.top1_random, logits.labels_N.new_tensor(random_N)),
    ]
    choices = [_choice(audited, run, logits, *each) for each in own]
    whole_runs = [
        (other, other.logits) for arm in audited.others for other in arm.runs
        if arm.policy == "whole" and arm.config.fold is None and other.logits is not None
    ]  # fmt: skip
    if whole_runs:
        whole, seen = max(whole_runs, key=lambda each: each[0].evaluation.top1)
        top1, full = whole.evaluation.top1, 0
    elif "full" in done.crops:
        whole, seen, full = run, logits, done.crops.index("full")
        top1 = done.top1_crops[full]
    else:
        return choices
    crop = seen.labels_N.new_tensor(full)
    return [choices[0], _choice(audited, whole, seen, "whole image", top1, crop), *choices[1:]]


def _choice(
    audited: Audited, run: FinishedRun, logits: CropLogits, label: str, top1: float, crop_N: Tensor
) -> Choice:
    crop_N = crop_N.expand(len(logits.labels_N))
    candidates = candidate_indices(run.record.config, audited.shards.crop_layout)
    return Choice(
        label=label,
        top1=top1,
        crops=[candidates[crop] for crop in crop_N.tolist()],
        predicted=logits.predicted_NK.gather(1, crop_N[:, None])[:, 0].tolist(),
    )


def _draw_canvas(axes: Axes, sample: Sample, plan: CropLayout, chosen: int) -> None:
    side, box = plan.canvas_px, plan.boxes[chosen]
    axes.imshow(canvas_picture(sample.crops, plan), extent=(0, side, side, 0))
    size = (box.x1 - box.x0, box.y1 - box.y0)
    axes.add_patch(Rectangle((box.x0, box.y0), *size, fill=False, linewidth=2.2, edgecolor=BOX))


def _draw_map(axes: Axes, maps_BMN: Tensor, number: int) -> None:
    centred_BMN, low, high = scale_of(maps_BMN)
    axes.imshow(
        centred_BMN[number], cmap=COLOURS, alpha=MAP_OPACITY, vmin=low, vmax=high,
        extent=axes.images[0].get_extent(), interpolation="bilinear",
    )  # fmt: skip


def _label(axes: Axes, text: str) -> None:
    axes.text(-0.1, 0.5, text, ha="right", va="center", fontsize=9, transform=axes.transAxes)


def _caption(axes: Axes, text: str, colour: str) -> None:
    axes.text(0.5, -0.03, shown(text)[:CAPTION_CHARS], ha="center", va="top", fontsize=8,
              color=colour, transform=axes.transAxes)  # fmt: skip


def _png(figure: Figure) -> bytes:
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    picture = Image.open(drawn).convert("RGB")
    exact = [part for colour in ("white", "black", RIGHT, WRONG, BOX) for part in getrgb(colour)]
    palette = Image.new("P", (1, 1))
    num_free = NUM_COLOURS - len(exact) // 3
    photos = picture.quantize(num_free).getpalette() or []
    palette.putpalette([*exact, *photos[: 3 * num_free]])
    picture.quantize(palette=palette).save(small, "PNG", optimize=True)
    return small.getvalue()
