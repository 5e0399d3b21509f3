"""Accuracy of the choice, of every other choice, and what each costs.

At evaluation there is no noise: one crop is chosen by the best score, and the classifier runs
on that crop alone. Axes: N samples of the split, B of a batch, K candidates, C classes.
"""

from collections.abc import Callable, Collection, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import Indices, ShardFolder, evaluation_batches
from pipeline.common.progress import Progress
from training.data import augment
from training.data.processes import Process, sum_over_ranks
from training.data.shards import Batch
from training.model.classifier import SelectiveClassifier, autocast
from training.model.estimators import take
from training.model.policies import POLICIES
from training.score.crop_logits import Table
from training.score.metrics import Evaluation, summarise

OnImages = Callable[[int], None]
"""Called with a number of images, on all ranks, that have passed."""

EVALUATION_BATCH = 64
CHOICE_SEED = 0  # of the one random crop that policy `random` is scored on after each epoch


@torch.inference_mode()
def evaluate_choice(
    model: SelectiveClassifier, shards: ShardFolder, *, process: Process, on_images: OnImages
) -> float:
    """Score the policy alone, top-1 in % over all ranks: cheap enough for after every epoch."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.float64, device=process.device)
    for batch, crops in val_batches(model, shards, process):
        with autocast(model.config, process.device):
            predicted_B = _policy_prediction(model, batch, crops)
        counts[0] += (predicted_B == batch.labels_B).sum()
        counts[1] += len(predicted_B)
        on_images(len(predicted_B) * process.world_size)
    hits, seen = sum_over_ranks(counts, process).tolist()
    return float(100 * hits / seen)


def val_batches(
    model: SelectiveClassifier, shards: ShardFolder, process: Process
) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
    """Read this rank's share of the validation split, and view its crops."""
    pieces = evaluation_batches(
        shards.manifest.num_samples("val"),
        batch_size=EVALUATION_BATCH,
        rank=process.rank,
        world_size=process.world_size,
    )
    yield from crop_batches(model, shards, process, split="val", pieces=pieces)


def crop_batches(
    model: SelectiveClassifier,
    shards: ShardFolder,
    process: Process,
    *,
    split: str,
    pieces: Collection[Indices],
) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
    """Read samples in pieces, and view their crops, each `(B, H, W, 3)`."""
    reader = model.reader(shards, split, process)
    for batch in reader.batches(pieces):
        yield batch, augment.cut(batch, shards.crop_layout, model.candidates)


def _policy_prediction(
    model: SelectiveClassifier, batch: Batch, crops: tuple[Tensor, ...]
) -> Tensor:
    if POLICIES[model.config.policy].averages:
        return all_logits(model, crops).softmax(2).mean(1).argmax(1)
    chosen_B = _probabilities(model, batch).argmax(1)
    return model.logits(take(torch.stack(crops, 1), chosen_B)).argmax(1)


def all_logits(model: SelectiveClassifier, crops: tuple[Tensor, ...]) -> Tensor:
    """Classify every crop, float32 `(B, K, C)`."""
    return torch.stack([model.logits(crop) for crop in crops], 1)


def _probabilities(model: SelectiveClassifier, batch: Batch) -> Tensor:
    """Give the choice over K: the proposer's, or that of a policy that does not look."""
    if model.proposer is not None and batch.glimpses_BLSS is not None:
        probabilities_BK: Tensor = model.proposer(batch.glimpses_BLSS).probabilities_BK
        return probabilities_BK
    num_crops = len(model.candidates)
    if POLICIES[model.config.policy].fixed_crop:
        fixed_B = model.fixed_choice(batch.labels_B[:, None].expand(-1, num_crops).float())
        return F.one_hot(fixed_B, num_crops).float()
    draws = [np.random.default_rng((CHOICE_SEED, index)).integers(num_crops)
             for index in batch.indices_B.tolist()]  # fmt: skip
    drawn_B = torch.tensor(draws, device=batch.labels_B.device)
    return F.one_hot(drawn_B, num_crops).float()


def evaluate_table(
    model: SelectiveClassifier, shards: ShardFolder, *, process: Process, on_images: OnImages
) -> tuple[Table, Evaluation]:
    """Run the classifier on every crop of the validation split, and draw the figures."""
    table = make_table(model, shards, process=process, on_images=on_images)
    return table, summarise(table, model)


def count_images(on_progress: Callable[[int, int], None], total: int) -> OnImages:
    """Turn numbers of images that have passed into how many have in all, and of how many."""
    seen = 0

    def report(num_images: int) -> None:
        nonlocal seen
        seen = min(total, seen + num_images)
        on_progress(seen, total)

    return report


def counting(progress: Progress, stage: str, total: int) -> OnImages:
    """Show numbers of images that have passed in a stage."""
    return count_images(lambda done, of: progress.update(stage, done, of), total)


@torch.inference_mode()
def make_table(
    model: SelectiveClassifier, shards: ShardFolder, *, process: Process, on_images: OnImages
) -> Table:
    """Run the classifier on every crop of the validation split.

    Each rank fills in its rows; their sum is the table of the whole split.
    """
    model.eval()
    num_samples, num_crops = shards.manifest.num_samples("val"), len(model.candidates)
    table = _empty_table(num_samples, num_crops, process.device)
    for batch, crops in val_batches(model, shards, process):
        with autocast(model.config, process.device):
            probabilities_BK = _probabilities(model, batch)
            logits_BKC = all_logits(model, crops)
        rows = batch.indices_B
        part = Table.of(batch.labels_B, logits_BKC, probabilities_BK)
        for name, column in vars(table).items():
            column[rows] = getattr(part, name)
        on_images(len(rows) * process.world_size)
    columns = {name: sum_over_ranks(column, process).cpu() for name, column in vars(table).items()}
    return Table(**columns)


def _empty_table(num_samples: int, num_crops: int, device: torch.device) -> Table:
    return Table(
        labels_N=torch.zeros(num_samples, dtype=torch.int64, device=device),
        predicted_NK=torch.zeros((num_samples, num_crops), dtype=torch.int64, device=device),
        losses_NK=torch.zeros((num_samples, num_crops), device=device),
        averaged_N=torch.zeros(num_samples, dtype=torch.int64, device=device),
        probabilities_NK=torch.zeros((num_samples, num_crops), device=device),
    )
