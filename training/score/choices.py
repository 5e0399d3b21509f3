"""The glimpses of samples, and what a proposer chooses.

Axes: B samples, K candidates, L glimpses, S glimpse px.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import ShardFolder
from training.data.processes import Process
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
def choose(model: SelectiveClassifier, glimpses_BLSS: Tensor) -> Tensor:
    """Choose without noise, float32 `(B, K)` on the CPU; rows sum to 1."""
    if model.proposer is None:
        raise RuntimeError("a choice without a proposer")
    with autocast(model.config, glimpses_BLSS.device):
        probabilities_BK: Tensor = model.proposer(glimpses_BLSS).probabilities_BK
    return probabilities_BK.float().cpu()
