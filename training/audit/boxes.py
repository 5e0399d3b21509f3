"""Whether the chosen crop shows the object, where boxes of the objects are known.

Axes: N samples with boxes, K candidates.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline import BOX_HEADER, ObjectBox, ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from training.audit.saliency import Point, peaks, saliency_maps, smoothed
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.model.proposer import MapProposer
from training.score.choices import choose, glimpse_batches
from training.score.classify import OnImages, counting
from training.score.crop_logits import CropLogits

MIDDLE: Point = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class BoxScores:
    """How well a choice covers the objects, vs choices that do not look; shares, 0 to 1.

    Attributes:
        num_samples: Images with boxes.
        coverage: Share of the boxes' area inside the chosen crop, mean over the images.
        coverage_centre: The same for the centre crop; None where there is none.
        coverage_random: The same for a random crop, the exact expectation.
        coverage_best: The same for the crop that covers most.
        pointing: Share of the images whose chosen crop contains the middle of a box.
        pointing_random: The same for a random crop, the exact expectation.
        pointing_map: The pointing game: share of the images whose map has its maximum inside a
            box; None where the proposer has no map. The map is upsampled to 57 x 57 cells and
            averaged over a window of a third of its sides; its maximum is the middle of the highest
            cell, the first of equals in reading order. A box contains its left and upper edges, not
            the others.
        pointing_centre: The same for the middle of the image, which needs no map.
        top1: Accuracy on the chosen crop of these images, %; None without their logits.
        top1_best: Accuracy on the crop that fits an object best, by intersection over union, %:
            what knowing the place, but not the class, would reach. The whole image covers every
            object and fits few.

    Source: Zhang et al. 2016, Top-down Neural Attention by Excitation Backprop, section 4.2; they
    accept 15 px around a box and average over the classes, we do neither.
    """

    num_samples: int
    coverage: float
    coverage_centre: float | None
    coverage_random: float
    coverage_best: float
    pointing: float
    pointing_random: float
    pointing_map: float | None
    pointing_centre: float
    top1: float | None
    top1_best: float | None


def read_boxes(path: Path) -> dict[str, list[ObjectBox]]:
    """Read the boxes of each image from a CSV with the columns path, x0, y0, x1 and y1.

    Paths are those of the source's images, such as `val/CLASS/NAME.JPEG`; an image may have
    several rows.

    Raises:
        ConfigError: If there is no such file, or a row is no box.
    """
    boxes: dict[str, list[ObjectBox]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                boxes.setdefault(row["path"], []).append(_box(row, number))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--boxes must be a CSV with the columns {', '.join(BOX_HEADER)}, boxes as fractions; "
            f"got {type(error).__name__}: {error} in {path}. Give another file."
        ) from error
    return boxes


def _box(row: Mapping[str, str], number: int) -> ObjectBox:
    x0, y0, x1, y1 = (float(row[name]) for name in BOX_HEADER[1:])
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(f"box {x0}, {y0}, {x1}, {y1} in line {number}")
    return x0, y0, x1, y1


def choose_on_boxes(
    model: SelectiveClassifier,
    shards: ShardFolder,
    path: Path,
    *,
    logits: CropLogits | None,
    process: Process,
    progress: Progress = SILENT,
) -> BoxScores:
    """Compare what a proposer chooses with the objects' boxes, on val if any of its have one.

    Args:
        model: Networks of a run that chooses, in evaluation mode.
        shards: To read from.
        path: CSV of the boxes.
        logits: The run's logits on the validation split of these shards, or None.
        process: This process.
        progress: Shows images.

    Raises:
        ConfigError: If the boxes cannot be read, or are of none of the images.
    """
    known = read_boxes(path)
    # With --dev the images that validate are named train/, so the names alone do not tell.
    for split in ("val", "train"):
        rows, boxes_N = _look_up(shards, split, known, progress)
        if rows:
            break
    else:
        raise ConfigError(
            f"--boxes must be of the shards' images; got none of them in {path}. "
            "Its column path holds paths such as val/CLASS/NAME.JPEG."
        )
    on_images = counting(progress, "choosing where boxes are known", len(rows))
    glimpses = glimpse_batches(model, shards, process, split=split, rows=rows)
    chosen_N, peaks_N = _choices(model, glimpses, on_images)
    return score_boxes(
        chosen_N,
        boxes_N,
        [shards.crop_layout.normalised()[k] for k in model.candidates],
        centre=model.names.index("centre") if "centre" in model.names else None,
        peaks_N=peaks_N or None,
        right_NK=None if logits is None or split != "val" else logits.right_NK[rows].numpy(),
    )


def _look_up(
    shards: ShardFolder,
    split: str,
    known: dict[str, list[ObjectBox]],
    progress: Progress,
) -> tuple[list[int], list[list[ObjectBox]]]:
    """Find the samples that have boxes, and their boxes."""
    reader = shards.reader(split)
    rows, boxes_N = [], []
    for index in range(len(reader)):
        found = known.get(reader.read(index, candidates=()).meta.path)
        if found:
            rows.append(index)
            boxes_N.append(found)
        progress.update("looking up boxes", index + 1, len(reader))
    return rows, boxes_N


def _choices(
    model: SelectiveClassifier,
    glimpses: Iterable[Tensor],
    on_images: OnImages,
) -> tuple[list[int], list[Point]]:
    """Give each sample's chosen crop, and its map's maximum where the proposer has a map."""
    chosen: list[int] = []
    highest: list[Point] = []
    for glimpses_BLSS in glimpses:
        chosen += choose(model, glimpses_BLSS).argmax(1).tolist()
        if isinstance(model.proposer, MapProposer):
            highest += peaks(smoothed(saliency_maps(model.proposer, glimpses_BLSS)))
        on_images(len(glimpses_BLSS))
    return chosen, highest


def score_boxes(
    chosen_N: Sequence[int],
    boxes_N: Sequence[Sequence[ObjectBox]],
    candidates: Sequence[ObjectBox],
    *,
    centre: int | None,
    peaks_N: Sequence[Point] | None = None,
    right_NK: NDArray[np.bool_] | None = None,
) -> BoxScores:
    """Compare chosen crops with boxes.

    Args:
        chosen_N: Index of each sample's crop.
        boxes_N: Boxes of each sample's objects, at least one.
        candidates: The K crops, as fractions of the image's sides.
        centre: Index of the centre crop.
        peaks_N: Where each sample's map is highest, for proposers that have one.
        right_NK: Whether the classifier is right on each crop, where that is known.
    """
    coverage_NK = np.array([[_covered(boxes, crop) for crop in candidates] for boxes in boxes_N])
    hits_NK = np.array([[_points_at(boxes, crop) for crop in candidates] for boxes in boxes_N])
    rows_N = np.arange(len(boxes_N))
    chosen = np.asarray(chosen_N)
    fits_NK = np.array([[_fit(boxes, crop) for crop in candidates] for boxes in boxes_N])
    return BoxScores(
        num_samples=len(boxes_N),
        coverage=_mean(coverage_NK[rows_N, chosen]),
        coverage_centre=None if centre is None else _mean(coverage_NK[:, centre]),
        coverage_random=_mean(coverage_NK),
        coverage_best=_mean(coverage_NK.max(1)),
        pointing=_mean(hits_NK[rows_N, chosen]),
        pointing_random=_mean(hits_NK),
        pointing_map=None if peaks_N is None else _hit_rate(peaks_N, boxes_N),
        pointing_centre=_hit_rate([MIDDLE] * len(boxes_N), boxes_N),
        top1=None if right_NK is None else 100 * _mean(right_NK[rows_N, chosen]),
        top1_best=None if right_NK is None else 100 * _mean(right_NK[rows_N, fits_NK.argmax(1)]),
    )


def _hit_rate(points_N: Sequence[Point], boxes_N: Sequence[Sequence[ObjectBox]]) -> float:
    """Give the share of the images whose point lies in one of its boxes."""
    hits = [
        any(_holds(box, point) for box in boxes)
        for point, boxes in zip(points_N, boxes_N, strict=True)
    ]
    return sum(hits) / len(hits)


def _mean(values: NDArray[np.floating] | NDArray[np.bool_]) -> float:
    return float(values.mean())


def _covered(boxes: Sequence[ObjectBox], crop: ObjectBox) -> float:
    """Give the share of the boxes' areas inside a crop; boxes that overlap count twice."""
    inside = sum(_overlap(box, crop) for box in boxes)
    return inside / sum(_overlap(box, box) for box in boxes)


def _fit(boxes: Sequence[ObjectBox], crop: ObjectBox) -> float:
    """Give the largest intersection over union of the crop with a box."""
    shared = [(_overlap(box, crop), _overlap(box, box)) for box in boxes]
    return max(both / (size + _overlap(crop, crop) - both) for both, size in shared)


def _overlap(one: ObjectBox, other: ObjectBox) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _points_at(boxes: Sequence[ObjectBox], crop: ObjectBox) -> bool:
    return any(_holds(crop, ((x0 + x1) / 2, (y0 + y1) / 2)) for x0, y0, x1, y1 in boxes)


def _holds(box: ObjectBox, point: Point) -> bool:
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]
