"""Fit a proposer to what a trained classifier loses on each crop: `srp-train distill RUN`.

The classifier was trained on random crops. What it loses on every crop of every training image is
computed once, by classifiers that have not seen the image, and stored beside the run; then any
proposer is fitted to that table in seconds, without running the classifier again.

Axes: N samples of the training split, B of a batch, K candidates, L that are looked at, S glimpse
px.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.durable import write_file
from pipeline.errors import CheckpointError
from pipeline.order import evaluation_batches
from training import selection, views
from training.config import TrainConfig
from training.data import Shards
from training.distributed import Process
from training.evaluate import EVALUATION_BATCH, batch_losses, crop_batches
from training.model import SelectiveClassifier
from training.proposer import Proposer
from training.trainer import batch_reader, fold_rows, uses_bfloat16

OnRows = Callable[[int], None]
"""Called with a number of samples that have passed."""


@dataclass(frozen=True, kw_only=True)
class LossMatrix:
    """What a classifier that has not seen the image loses on each of its crops.

    Attributes:
        losses_NK: Float32, cross-entropy without smoothing, of the candidates of a run.
        is_known_N: Whether a row has been computed.
    """

    losses_NK: Tensor
    is_known_N: Tensor

    @classmethod
    def empty(cls, num_samples: int, num_crops: int) -> "LossMatrix":
        """Begin with nothing known."""
        return cls(
            losses_NK=torch.zeros(num_samples, num_crops),
            is_known_N=torch.zeros(num_samples, dtype=torch.bool),
        )

    def save(self, path: Path) -> None:
        """Write the matrix as safetensors."""
        write_file(path, save({name: tensor.contiguous() for name, tensor in vars(self).items()}))

    @classmethod
    def load(cls, path: Path, *, num_samples: int, num_crops: int) -> "LossMatrix":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If it is damaged or of other samples.
        """
        try:
            matrix = cls(**load_file(path))
        except (TypeError, OSError, safetensors.SafetensorError) as error:
            raise _unusable(path, f"{type(error).__name__}: {error}") from error
        if matrix.losses_NK.shape != (num_samples, num_crops):
            raise _unusable(path, f"one of {tuple(matrix.losses_NK.shape)}")
        return matrix


def _unusable(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"a run's loss matrix must be of its samples and crops; got {what} in {path}. "
        "Delete it; it is computed again."
    )


@torch.inference_mode()
def fill_fold(
    matrix: LossMatrix,
    model: SelectiveClassifier,
    shards: Shards,
    *,
    fold: int,
    process: Process,
    on_rows: OnRows,
) -> None:
    """Compute one fold's rows with the classifier that was trained without them."""
    model.eval()
    autocast = uses_bfloat16(model.config, process.device)
    rows = fold_rows(len(matrix.losses_NK), fold)
    pieces = [rows[at : at + EVALUATION_BATCH] for at in range(0, len(rows), EVALUATION_BATCH)]
    for batch, crops in crop_batches(model, shards, process, split="train", pieces=pieces):
        with torch.autocast(process.device.type, torch.bfloat16, enabled=autocast):
            losses_BK, _ = batch_losses(model, crops, batch.labels_B)
        matrix.losses_NK[batch.indices_B.cpu()] = losses_BK.cpu()
        matrix.is_known_N[batch.indices_B.cpu()] = True
        on_rows(len(batch.indices_B))


def read_glimpses(model: SelectiveClassifier, shards: Shards, process: Process) -> Tensor:
    """Read what the proposer looks at in the training split, uint8 `(N, L, S, S)`."""
    reader = batch_reader(model.config, shards, model, "train", process)
    pieces = evaluation_batches(len(reader.reader), batch_size=EVALUATION_BATCH)
    return torch.cat([_looked(batch.glimpses_BLSS) for batch in reader.batches(pieces)])


def _looked(glimpses_BLSS: Tensor | None) -> Tensor:
    if glimpses_BLSS is None:
        raise RuntimeError("a batch without glimpses")
    return glimpses_BLSS.cpu().clone()


def fit_proposer(
    proposer: Proposer,
    glimpses_NLSS: Tensor,
    losses_NK: Tensor,
    config: TrainConfig,
    *,
    counterparts: tuple[int, ...],
    looked_counterparts: tuple[int, ...],
    on_rows: OnRows,
) -> list[float]:
    """Go down in the exact expectation of the loss over the choice.

    Args:
        proposer: Changed in place.
        glimpses_NLSS: Of the training split.
        losses_NK: Of classifiers that have not seen the images.
        config: Epochs, batch size, `proposer_lr`, `balance`, `hflip`, `weight_decay` and seed of
            the fit.
        counterparts: Where each candidate lies in a mirrored image.
        looked_counterparts: The same of those that are looked at.
        on_rows: Told of samples as they pass.

    Returns:
        The mean loss of the chosen crops in each epoch, as they were chosen then.
    """
    device = next(proposer.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    rate = config.lr if config.proposer_lr is None else config.proposer_lr
    optimizer = torch.optim.AdamW(proposer.parameters(), lr=rate, weight_decay=config.weight_decay)
    steps = config.epochs * max(1, len(losses_NK) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    proposer.train()
    means = []
    for _ in range(config.epochs):
        order = torch.randperm(len(losses_NK), generator=generator)
        total = 0.0
        pieces = torch.split(order, config.batch_size)
        for rows_B in pieces[: max(1, len(losses_NK) // config.batch_size)]:
            looked, losses = glimpses_NLSS[rows_B], losses_NK[rows_B]
            flips = (torch.rand(len(rows_B), generator=generator) < config.hflip).nonzero()[:, 0]
            looked = views.mirror(looked, flips, looked_counterparts)
            losses[flips] = losses[flips][:, list(counterparts)]
            proposal = proposer(looked.to(device))
            losses = losses.to(device)
            spread = selection.mean_choice_entropy(proposal.probabilities_BK)
            loss = selection.expected_loss(proposal.probabilities_BK, losses)
            (loss - config.balance * spread).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(losses.gather(1, proposal.chosen_B[:, None]).sum())
            on_rows(len(rows_B))
        means.append(total / (len(pieces[0]) * max(1, len(losses_NK) // config.batch_size)))
    return means
