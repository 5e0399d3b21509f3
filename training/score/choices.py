"""What a proposer sees of samples, and what it chooses there.

Axes: B samples, K candidates, L that are looked at, S glimpse px.
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
    """Read what the proposer looks at, batch by batch, uint8 `(B, L, S, S)`.

    A batch is valid until the next is asked for; copy what is to be kept.

    Args:
        model: Whose proposer it is.
        shards: To read from.
        process: That the model is on.
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
    """Let the proposer choose as at evaluation, float32 `(B, K)`, rows that sum to 1."""
    if model.proposer is None:
        raise RuntimeError("a choice without a proposer")
    with autocast(model.config, glimpses_BLSS.device):
        probabilities_BK: Tensor = model.proposer(glimpses_BLSS).probabilities_BK
    return probabilities_BK.float().cpu()
