"""Choose a crop of each photograph by its glimpses, and classify that crop alone.

Axes: B photographs, K candidates, L glimpses, S glimpse px, C classes, M and N rows and columns of
a map.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import Photo, PhotoSpec, Pixels, read_photos
from pipeline.common.errors import ImageError
from pipeline.common.progress import SILENT, Progress
from training.audit.saliency import saliency_maps
from training.data import augment
from training.data.shards import Batch, send
from training.model.classifier import autocast
from training.model.proposer import MapProposer
from training.predict.load import LoadedRun
from training.score.choices import choose
from training.score.classify import EVALUATION_BATCH

STAGE = "predicting"
PICTURE_PX = 640  # longer side of a picture for people


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run makes of one photograph.

    Attributes:
        photo: As it was read.
        logits_C: Float32, of the chosen crop.
        chosen: Index of the crop among the run's K candidates.
        probabilities_K: The proposer's, float32; None where a run has none.
        map_MN: The proposer's, in logits; None where it has none or no picture is wanted.
    """

    photo: Photo
    logits_C: Tensor
    chosen: int
    probabilities_K: Tensor | None
    map_MN: Tensor | None


@dataclass(kw_only=True)
class Tally:
    """How many photographs were predicted and rejected, and where the time went.

    Attributes:
        num_images: Predicted ones.
        num_rejected: Those that could not be used.
        seconds: From the first file to the last result, s; the parts below are of it.
        waited_s: Until the next photograph was decoded.
        proposer_s: Until the crops were chosen.
        classifier_s: Cutting and classifying them.
    """

    num_images: int = 0
    num_rejected: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    proposer_s: float = 0.0
    classifier_s: float = 0.0


def predict(
    run: LoadedRun,
    files: Iterable[Path],
    *,
    num_files: int | None,
    workers: int,
    tally: Tally,
    with_pictures: bool = False,
    progress: Progress = SILENT,
) -> Iterator[list[Prediction]]:
    """Predict photographs, a batch at a time, in their order; an unusable one is named and skipped.

    Args:
        run: Predicts.
        files: Taken one at a time.
        num_files: Their number, for the progress; None if not known yet.
        workers: Threads that decode.
        tally: Counts, and times.
        with_pictures: Whether pictures and maps are made for people.
        progress: Shows images.
    """
    model = run.model
    wanted = PhotoSpec(
        data=run.spec,
        looked_at=model.looked_at,
        glimpse_px=model.glimpse_px if model.looked_at else None,
        picture_px=PICTURE_PX if with_pictures else None,
    )
    photos: list[Photo] = []
    read = read_photos(files, wanted, workers=workers)
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        file, photo = next(read, (None, None))
        tally.waited_s += time.perf_counter() - before
        if isinstance(photo, ImageError):
            tally.num_rejected += 1
            progress.event("rejected", f"skipped {file}: {photo}", file=str(file))
        elif photo is not None:
            photos.append(photo)
        if photos and (photo is None or len(photos) == EVALUATION_BATCH):
            yield _predict_batch(run, photos, tally)
            photos = []
        tally.seconds = time.perf_counter() - started
        if file is None:
            return
        num_seen = tally.num_images + tally.num_rejected + len(photos)
        progress.update(STAGE, num_seen, num_files or 0)


@torch.inference_mode()
def _predict_batch(run: LoadedRun, photos: list[Photo], tally: Tally) -> list[Prediction]:
    model, device = run.model, run.model.mean_C.device
    before = time.perf_counter()
    batch, probabilities_BK, maps_BMN = _batch(photos).to(device), None, None
    chosen_B = torch.full((len(photos),), model.fixed_index or 0)
    if model.proposer is not None:
        glimpses_BLSS = send(_stacked([photo.glimpses_LSS for photo in photos]), device)
        probabilities_BK = choose(model, glimpses_BLSS)
        chosen_B = probabilities_BK.argmax(1)
        if isinstance(model.proposer, MapProposer) and photos[0].picture_HW3 is not None:
            maps_BMN = saliency_maps(model.proposer, glimpses_BLSS)
    chose = time.perf_counter()
    crops_B1HWC = augment.cut(
        batch, run.spec.crop_layout, model.candidates, wanted_BM=chosen_B[:, None]
    )
    with autocast(model.config, device):
        logits_BC = model.logits(crops_B1HWC[:, 0]).cpu()
    tally.classifier_s += time.perf_counter() - chose
    tally.proposer_s += chose - before
    tally.num_images += len(photos)
    return [
        Prediction(
            photo=photo,
            logits_C=logits_BC[b],
            chosen=int(chosen_B[b]),
            probabilities_K=None if probabilities_BK is None else probabilities_BK[b],
            map_MN=None if maps_BMN is None else maps_BMN[b],
        )
        for b, photo in enumerate(photos)
    ]


def _batch(photos: list[Photo]) -> Batch:
    """Lay photographs out as the validation images of shards; they have no labels."""
    return Batch(
        crops_BKHWC=None,
        canvases_BCC3=_stacked([photo.canvas_CC3 for photo in photos]),
        resized_BRHWC=_stacked([photo.resized_RHW3 for photo in photos]),
        glimpses_BLSS=None,
        labels_B=torch.zeros(len(photos), dtype=torch.int64),
        indices_B=torch.arange(len(photos)),
    )


def _stacked(pixels: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(pixels))
