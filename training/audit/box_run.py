"""Let a run's proposer choose on every image that has a box."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from torch import Tensor

from pipeline import ObjectBox, ShardFolder
from pipeline.common.errors import ConfigError
from training.audit.boxes import BoxFigures, Point, box_figures, read_boxes
from training.audit.saliency import peaks, saliency_maps, smoothed
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.model.proposer import MapProposer
from training.score.choices import choose, glimpse_batches
from training.score.crop_logits import Table
from training.score.evaluate import OnImages, count_images


def choose_on_boxes(
    model: SelectiveClassifier,
    shards: ShardFolder,
    path: Path,
    *,
    table: Table | None,
    process: Process,
    on_progress: Callable[[str, int, int], None],
) -> BoxFigures:
    """Compare what a proposer chooses with the objects' boxes, of val where it has any.

    Args:
        model: That chooses, in evaluation mode.
        shards: To read from.
        path: CSV of the boxes.
        table: Of the run on these shards' validation split, or None.
        process: The only one.
        on_progress: Told of a stage, and its images done and to do.

    Raises:
        ConfigError: If the boxes cannot be read, or are of none of the images.
    """
    known = read_boxes(path)
    split = "val" if any(name.startswith("val/") for name in known) else "train"
    rows, boxes_N = _look_up(shards, split, known, partial(on_progress, "looking up boxes"))
    if not rows:
        raise ConfigError(
            f"--boxes must be of the shards' images; got none of {split} in {path}. "
            "Its column path holds paths such as val/CLASS/NAME.JPEG."
        )
    on_images = count_images(partial(on_progress, "choosing where boxes are known"), len(rows))
    glimpses = glimpse_batches(model, shards, process, split=split, rows=rows)
    chosen_N, peaks_N = _choices(model, glimpses, on_images)
    return box_figures(
        chosen_N,
        boxes_N,
        [shards.crop_layout.normalised()[k] for k in model.candidates],
        centre=model.names.index("centre") if "centre" in model.names else None,
        peaks_N=peaks_N or None,
        right_NK=None if table is None or split != "val" else table.right_NK[rows].numpy(),
    )


def _look_up(
    shards: ShardFolder,
    split: str,
    known: dict[str, list[ObjectBox]],
    on_images: Callable[[int, int], None],
) -> tuple[list[int], list[list[ObjectBox]]]:
    """Find the samples that have boxes, and their boxes."""
    reader = shards.reader(split)
    rows, boxes_N = [], []
    for index in range(len(reader)):
        found = known.get(reader.read(index, candidates=()).meta.path)
        if found:
            rows.append(index)
            boxes_N.append(found)
        on_images(index + 1, len(reader))
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
