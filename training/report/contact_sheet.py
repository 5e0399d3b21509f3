"""Contact sheets: the proposer's choices on a few validation images, as inline pictures.

The images are drawn by a fixed seed, not picked. Axes: N samples, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline import CropLayout, Pixels, ShardFolder, ShardReader
from training.model.classifier import candidate_indices
from training.report.html import data_uri
from training.score.crop_logits import CropLogits
from training.score.metrics import final_prediction
from training.study.finished import FinishedRun

DRAW_SEED = 0
CANVAS_PX = 216
CROP_PX = 96
JPEG_QUALITY = 82
UNSEEN = (128, 128, 128)  # parts of the canvas outside every candidate


@dataclass(frozen=True, kw_only=True)
class Place:
    """A box on the canvas, % of its side."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class CropPicture:
    """One candidate of one image; `image` is a data URI, `probability` the proposer's, 0 to 1."""

    name: str
    image: str
    probability: float
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One validation image; `canvas` is a data URI, `place` that of the chosen crop.

    `heat` is what lies over the canvas, a data URI, where the proposer has a map.
    """

    key: str
    true_name: str
    predicted_name: str
    is_right: bool
    canvas: str
    place: Place
    crops: tuple[CropPicture, ...]
    heat: str | None = None


def why_no_sheet(run: FinishedRun, shards: ShardFolder | None) -> str | None:
    """Say why a run's choices cannot be shown; None where they can."""
    if shards is None:
        return "No shards were named, so there are no pictures; add --shards SHARDS."
    if shards.manifest.fingerprint != run.record.data.fingerprint:
        return (
            f"The shards in {shards.place} are not those of the runs, so there are no pictures; "
            "name the runs' own with --shards."
        )
    if run.logits is None:
        return f"The run {run.record.name} has lost its logits, so there are no pictures."
    return None


def draw_sheet(
    run: FinishedRun, logits: CropLogits, shards: ShardFolder, *, num_rows: int
) -> tuple[SheetRow, ...]:
    """Show a run's choices on some validation images.

    Args:
        run: Its policy chooses.
        logits: That run's logits on these shards.
        shards: Those that the run was trained on.
        num_rows: Images to show, fewer where the split has fewer.
    """
    reader = shards.reader("val")
    predicted_N = final_prediction(logits, run.record.config.policy).tolist()
    candidates = candidate_indices(run.record.config, shards.crop_layout)
    return tuple(
        _row(
            reader, index, shards,
            candidates=candidates,
            probabilities=logits.probabilities_NK[index].tolist(),
            predicted=predicted_N[index],
        )
        for index in drawn_rows(len(reader), num_rows)
    )  # fmt: skip


def drawn_rows(num_samples: int, num_rows: int) -> list[int]:
    """Draw the samples that a sheet shows, as indices in the split."""
    rng = np.random.default_rng(DRAW_SEED)
    rows: list[int] = rng.choice(num_samples, min(num_rows, num_samples), replace=False).tolist()
    return rows


def _row(
    reader: ShardReader,
    index: int,
    shards: ShardFolder,
    *,
    candidates: tuple[int, ...],
    probabilities: Sequence[float],
    predicted: int,
) -> SheetRow:
    sample, plan, names = reader.read(index), shards.crop_layout, shards.manifest.class_names
    chosen = int(np.argmax(probabilities))
    x0, y0, x1, y1 = plan.normalised()[candidates[chosen]]
    crops = tuple(
        CropPicture(
            name=plan.names[k],
            image=_shown(crop_picture(sample.crops[k]), CROP_PX),
            probability=probability,
            is_chosen=position == chosen,
        )
        for position, (k, probability) in enumerate(zip(candidates, probabilities, strict=True))
    )
    return SheetRow(
        key=sample.key,
        true_name=names[sample.label],
        predicted_name=names[predicted],
        is_right=predicted == sample.label,
        canvas=_shown(canvas_picture(sample.crops, plan), CANVAS_PX),
        place=Place(
            left=100 * x0, top=100 * y0, width=100 * (x1 - x0), height=100 * (y1 - y0)
        ),
        crops=crops,
    )  # fmt: skip


def canvas_picture(crops: Sequence[Pixels], plan: CropLayout) -> Image.Image:
    """Rebuild the canvas: resized candidates first, exact crops over them."""
    canvas = Image.new("RGB", (plan.canvas_px, plan.canvas_px), UNSEEN)
    for k in sorted(range(len(plan)), key=plan.is_cut):
        box = plan.boxes[k]
        size = (box.x1 - box.x0, box.y1 - box.y0)
        canvas.paste(crop_picture(crops[k]).resize(size), (box.x0, box.y0))
    return canvas


def crop_picture(crop_CHW: Pixels) -> Image.Image:
    """Make a picture of a crop, uint8 `(3, H, W)`."""
    return Image.fromarray(np.ascontiguousarray(crop_CHW.transpose(1, 2, 0)))


def _shown(picture: Image.Image, side_px: int) -> str:
    if picture.width > side_px:
        picture = picture.resize((side_px, side_px), Image.Resampling.LANCZOS)
    return data_uri(picture, "JPEG", quality=JPEG_QUALITY)
