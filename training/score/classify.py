"""Run a classifier over crops: the one loop that every figure, cache and audit comes from.

At evaluation there is no noise: the crop with the best score is chosen.

Axes: N samples, B of a batch, K candidates, V views of an image, C classes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import log
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import Indices, ShardFolder, evaluation_batches
from pipeline.common.progress import SILENT, Progress
from training.data import augment
from training.data.processes import Process, sum_over_ranks
from training.data.shards import Batch, BatchReader
from training.model.classifier import SelectiveClassifier, autocast
from training.model.policies import POLICIES
from training.score.crop_logits import CropLogits

SCORING = "scoring every crop"
OnImages = Callable[[int], None]
"""Called with a number of images, on all ranks, that have passed."""

EVALUATION_BATCH = 64
CHOICE_SEED = 0  # of the one random crop that policy `random` is scored on after each epoch


@torch.inference_mode()
def classify_crops(
    model: SelectiveClassifier,
    shards: ShardFolder,
    *,
    process: Process,
    split: str = "val",
    rows: Indices | None = None,
    with_canvas: bool = False,
    with_mirrors: bool = False,
    reader: BatchReader | None = None,
    stage: str = SCORING,
    progress: Progress = SILENT,
) -> CropLogits:
    """Classify every crop of some samples, and let the proposer choose.

    Each rank classifies its share of the samples; their sum is the whole, on the CPU of each.

    Args:
        model: To run.
        shards: To read from.
        process: This one among its peers.
        split: To read from.
        rows: Samples of the split, in the order wanted; None takes all.
        with_canvas: Whether the whole canvas at its own resolution is one more view, the last.
        with_mirrors: Whether a view's logits are those of `_both_ways`.
        reader: Reads the split; None opens it, and checks each sample anew.
        stage: Name of the work, for the progress.
        progress: Shows images.
    """
    model.eval()
    device = process.device
    rows_N = np.arange(shards.manifest.num_samples(split)) if rows is None else rows
    num_samples, num_crops = len(rows_N), len(model.candidates)
    logits_NVC = torch.zeros(num_samples, num_crops + with_canvas, model.num_classes, device=device)
    probabilities_NK = torch.zeros(num_samples, num_crops, device=device)
    labels_N = torch.zeros(num_samples, dtype=torch.int64, device=device)
    places = evaluation_batches(
        num_samples, batch_size=EVALUATION_BATCH, rank=process.rank, world_size=process.world_size
    )
    on_images = counting(progress, stage, num_samples)
    classify = partial(_both_ways, model) if with_mirrors else model.logits
    reader = reader or model.reader(shards, split, process)
    batches = reader.batches([rows_N[place_B] for place_B in places])
    for place_B, batch in zip(places, batches, strict=True):
        views = augment.cut(batch, shards.crop_layout, model.candidates).unbind(1)
        if with_canvas and batch.canvases_BCC3 is not None:
            views = (*views, batch.canvases_BCC3)
        with autocast(model.config, device):
            probabilities_NK[place_B] = _choice(model, batch).float()
            logits_NVC[place_B] = torch.stack([classify(view) for view in views], 1)
        labels_N[place_B] = batch.labels_B
        on_images(len(place_B) * process.world_size)
    labels_N, logits_NVC, probabilities_NK = (
        sum_over_ranks(column, process).cpu() for column in (labels_N, logits_NVC, probabilities_NK)
    )
    return CropLogits(labels_N=labels_N, logits_NKC=logits_NVC, probabilities_NK=probabilities_NK)


class Validation(NamedTuple):
    """What a policy scores: top-1 in %, and how often it chose each candidate, 0 to 1."""

    top1: float
    shares: tuple[float, ...]


@torch.inference_mode()
def evaluate_choice(
    model: SelectiveClassifier,
    shards: ShardFolder,
    *,
    process: Process,
    on_images: OnImages,
    reader: BatchReader | None = None,
    awaited: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> Validation:
    """Score the policy alone, over all ranks: cheap enough for after every epoch.

    Args:
        model: To run.
        shards: To read the validation split from.
        process: This one among its peers.
        on_images: Called after each batch.
        reader: Reads the validation split; None opens it, and checks each sample anew.
        awaited: Yields the batches that it is given; it may end the wait for one.
    """
    model.eval()
    num_crops = len(model.candidates)
    counts = torch.zeros(2 + num_crops, dtype=torch.float64, device=process.device)
    pieces = evaluation_batches(
        shards.manifest.num_samples("val"), batch_size=EVALUATION_BATCH, rank=process.rank,
        world_size=process.world_size,
    )  # fmt: skip
    reader = reader or model.reader(shards, "val", process)
    for batch in awaited(reader.batches(pieces)):
        with autocast(model.config, process.device):
            if POLICIES[model.config.policy].averages:
                crops = augment.cut(batch, shards.crop_layout, model.candidates).unbind(1)
                logits_BKC = torch.stack([model.logits(crop) for crop in crops], 1)
                predicted_B = logits_BKC.softmax(2).mean(1).argmax(1)
            else:
                chosen_B1 = _choice(model, batch).argmax(1, keepdim=True).cpu()
                crops_B1HWC = augment.cut(
                    batch, shards.crop_layout, model.candidates, wanted_BM=chosen_B1
                )
                predicted_B = model.logits(crops_B1HWC[:, 0]).argmax(1)
                chosen_K = torch.bincount(chosen_B1[:, 0], minlength=num_crops)  # on the CPU
                counts[2:] += chosen_K.to(process.device)
        counts[0] += (predicted_B == batch.labels_B).sum()
        counts[1] += len(predicted_B)
        on_images(len(predicted_B) * process.world_size)
    hits, seen, *chosen = sum_over_ranks(counts, process).tolist()
    return Validation(100 * hits / seen, tuple(count / seen for count in chosen))


def _choice(model: SelectiveClassifier, batch: Batch) -> Tensor:
    """Give the probabilities of the K crops: the proposer's, or 1 for the policy's own crop."""
    if model.proposer is not None and batch.glimpses_BLSS is not None:
        probabilities_BK: Tensor = model.proposer(batch.glimpses_BLSS).probabilities_BK
        return probabilities_BK
    num_crops = len(model.candidates)
    chosen = [
        np.random.default_rng((CHOICE_SEED, index)).integers(num_crops)
        if model.fixed_index is None
        else model.fixed_index
        for index in batch.indices_B.tolist()
    ]
    chosen_B = torch.tensor(chosen, device=batch.labels_B.device)
    return F.one_hot(chosen_B, num_crops).float()


def _both_ways(model: SelectiveClassifier, view_BHWC: Tensor) -> Tensor:
    """Take the log of the mean of the probabilities of a view and of its mirror, `(B, C)`."""
    views = (view_BHWC, view_BHWC.flip(2))
    return torch.stack([model.logits(view).float().log_softmax(1) for view in views]).logsumexp(
        0
    ) - log(2)


def counting(progress: Progress, stage: str, total: int) -> OnImages:
    """Show numbers of images that have passed in a stage as how many have in all."""
    seen = 0

    def report(num_images: int) -> None:
        nonlocal seen
        seen = min(total, seen + num_images)
        progress.update(stage, seen, total)

    return report
