"""The glimpses of samples, and what a proposer chooses.

Axes: B samples, K candidates, L glimpses, S glimpse px.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import ShardFolder
from training.data import augment
from training.data.processes import Process
from training.data.shards import send
from training.model.classifier import SelectiveClassifier, autocast
from training.score.classify import EVALUATION_BATCH


def glimpse_batches(
    model: SelectiveClassifier,
    shards: ShardFolder,
    process: Process,
    *,
    split: str,
    rows: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Read glimpses batch by batch, uint8 `(B, L, S, S)`.

    A batch is valid until the next one is read; copy what you keep.

    Args:
        model: Its proposer decides what is read.
        shards: To read from.
        process: This process.
        split: To read from.
        rows: Samples of the split, in the order wanted; None takes all.
    """
    reader = model.reader(shards, split, process)
    wanted = np.arange(len(reader.reader)) if rows is None else np.asarray(rows)
    pieces = [wanted[at : at + EVALUATION_BATCH] for at in range(0, len(wanted), EVALUATION_BATCH)]
    for batch in reader.batches(pieces):
        if batch.glimpses_BLSS is None:
            raise RuntimeError("a batch without glimpses")
        yield batch.glimpses_BLSS


@torch.inference_mode()
def choices_of(
    model: SelectiveClassifier, shards: ShardFolder, process: Process, *, split: str
) -> Tensor:
    """Choose for each sample of a split without noise, float32 `(N, K)`; rows sum to 1."""
    model.eval()
    shown = glimpse_batches(model, shards, process, split=split)
    return torch.cat([choose(model, glimpses_BLSS) for glimpses_BLSS in shown])


@torch.inference_mode()
def mirrored_choices(
    model: SelectiveClassifier, shards: ShardFolder, process: Process, *, num_ways: int
) -> Tensor:
    """Score every training image in every way in which an epoch may mirror it.

    A proposer that is not trained answers the same in each epoch, so one pass answers for all.

    Args:
        model: Its proposer scores.
        shards: To read from.
        process: This process.
        num_ways: The first of `augment.Draws.ways_B` that occur, 1 to 4.

    Returns:
        Log-probabilities, float32 `(N, W, K)`, on the CPU; axis K as in the mirrored image.
    """
    if model.proposer is None:
        raise RuntimeError("a choice without a proposer")
    model.eval()
    counterparts = augment.mirrored_candidates(shards.crop_layout, model.looked_at)
    parts = []
    for glimpses_BLSS in glimpse_batches(model, shards, process, split="train"):
        ways = []
        for way in range(num_ways):
            ways_B = torch.full((len(glimpses_BLSS),), way)
            draws = augment.Draws((ways_B & 1).bool(), (ways_B & 2).bool(), ways_B[:, None])
            mirrored = augment.mirror(glimpses_BLSS, draws, counterparts)
            with autocast(model.config, process.device):
                proposal = model.proposer(mirrored, send(ways_B, process.device))
            ways.append(proposal.scores_BK.float().log_softmax(1).cpu())
        parts.append(torch.stack(ways, 1))
    return torch.cat(parts)


@torch.inference_mode()
def choose(model: SelectiveClassifier, glimpses_BLSS: Tensor) -> Tensor:
    """Choose without noise, float32 `(B, K)` on the CPU; rows sum to 1."""
    if model.proposer is None:
        raise RuntimeError("a choice without a proposer")
    with autocast(model.config, glimpses_BLSS.device):
        probabilities_BK: Tensor = model.proposer(glimpses_BLSS).probabilities_BK
    return probabilities_BK.float().cpu()
