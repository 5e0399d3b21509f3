"""Fit a proposer to what a trained classifier loses on each crop: `srp-train distill RUN`.

The classifier was trained on random crops. What it loses on every crop of every training image is
computed once, by classifiers that have not seen the image, and stored beside the run; then any
proposer is fitted to that table in minutes, without running the classifier again.

Axes: N samples of the training split, B of a batch, K candidates, L that are looked at, S glimpse
px.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline import ShardFolder, evaluation_batches
from pipeline.common.errors import DivergedError
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process
from training.model import estimators
from training.model.classifier import SelectiveClassifier, autocast
from training.model.proposer import Proposal, Proposer
from training.run.state import fold_rows
from training.run.train import broken_weights
from training.score.crop_logits import crop_losses
from training.score.evaluate import EVALUATION_BATCH, all_logits, crop_batches
from training.score.losses import Judged, LossMatrix

TARGET_TAU = 0.3  # a crop whose chance of an error is lower by this is wanted e times as often
SOFT_SHARE = 2 / 3  # of the epochs; the others make the choice sure

OnRows = Callable[[int], None]
"""Called with a number of samples that have passed."""


@torch.inference_mode()
def fill_fold(
    matrix: LossMatrix,
    model: SelectiveClassifier,
    shards: ShardFolder,
    *,
    fold: int,
    process: Process,
    on_rows: OnRows,
) -> None:
    """Compute one fold's rows with the classifier that was trained without them."""
    model.eval()
    rows = fold_rows(len(matrix.losses_NK), fold)
    pieces = [rows[at : at + EVALUATION_BATCH] for at in range(0, len(rows), EVALUATION_BATCH)]
    for batch, crops in crop_batches(model, shards, process, split="train", pieces=pieces):
        with autocast(model.config, process.device):
            losses_BK = crop_losses(batch.labels_B, all_logits(model, crops))
        matrix.losses_NK[batch.indices_B.cpu()] = losses_BK.cpu()
        on_rows(len(batch.indices_B))


@torch.inference_mode()
def judge(
    model: SelectiveClassifier, shards: ShardFolder, *, process: Process, on_rows: OnRows
) -> Judged:
    """Run the classifier on every crop of the validation split."""
    model.eval()
    pieces = evaluation_batches(shards.manifest.num_samples("val"), batch_size=EVALUATION_BATCH)
    labels, logits = [], []
    for batch, crops in crop_batches(model, shards, process, split="val", pieces=pieces):
        with autocast(model.config, process.device):
            logits.append(all_logits(model, crops).cpu())
        labels.append(batch.labels_B.cpu().clone())
        on_rows(len(batch.labels_B))
    return Judged(labels_N=torch.cat(labels), logits_NKC=torch.cat(logits))


def count_fitted(config: TrainConfig, num_samples: int) -> int:
    """Count the samples that a fit passes; those that fill no whole batch are left out."""
    return config.epochs * _count_steps(config, num_samples) * min(config.batch_size, num_samples)


def _count_steps(config: TrainConfig, num_samples: int) -> int:
    return max(1, num_samples // config.batch_size)


def fit_proposer(
    proposer: Proposer,
    glimpses_NLSS: Tensor,
    losses_NK: Tensor,
    config: TrainConfig,
    *,
    counterparts: augment.Mirrored,
    looked_counterparts: augment.Mirrored,
    on_rows: OnRows,
) -> list[float]:
    """Teach a proposer to choose as the classifier's chances of an error ask for.

    Such a chance, 1 - exp(-loss), is what top-1 counts. The loss itself knows no bounds, so a few
    images on which it is huge would decide, and all would be shown what is safe for those. First
    the choice is drawn towards a softmax of these chances, for a choice that is sure and wrong
    learns from nothing else; then it goes down in the exact expectation of the chance.

    Args:
        proposer: Changed in place.
        glimpses_NLSS: Of the training split.
        losses_NK: Of classifiers that have not seen the images.
        config: Epochs, batch size, `proposer_lr`, `balance`, `hflip`, `vflip`, `weight_decay`
            and seed of the fit.
        counterparts: Which crop takes each candidate's place in a mirrored image.
        looked_counterparts: The same of those that are looked at.
        on_rows: Told of samples as they pass.

    Returns:
        The mean chance of an error on the chosen crops in each epoch, as they were chosen then.

    Raises:
        DivergedError: If a loss or a weight stopped being a number.
    """
    device = next(proposer.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    rate = config.lr if config.proposer_lr is None else config.proposer_lr
    optimizer = torch.optim.AdamW(proposer.parameters(), lr=rate, weight_decay=config.weight_decay)
    steps = _count_steps(config, len(losses_NK))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=config.epochs * steps
    )
    proposer.train()
    errors_NK = -torch.expm1(-losses_NK)
    means = []
    for epoch in range(config.epochs):
        order = torch.randperm(len(losses_NK), generator=generator)
        total = 0.0
        for step, rows_B in enumerate(torch.split(order, config.batch_size)[:steps], start=1):
            draws = augment.draw(
                len(rows_B), hflip=config.hflip, vflip=config.vflip, shift=0, generator=generator
            )
            looked = augment.mirror(glimpses_NLSS[rows_B], draws, looked_counterparts)
            errors = augment.mirror(errors_NK[rows_B], draws, counterparts).to(device)
            with autocast(config, device):
                proposal = proposer(looked.to(device), draws.ways_B.to(device))
            loss = _loss(proposal, errors, past=epoch / config.epochs, balance=config.balance)
            if not loss.isfinite():
                raise _diverged(f"the loss must stay a number; got {loss.item()}", epoch, step)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(errors.gather(1, proposal.chosen_B[:, None]).sum())
            on_rows(len(rows_B))
        if name := broken_weights(proposer):
            raise _diverged(f"weights must stay numbers; got others in {name}", epoch, steps)
        means.append(total * config.epochs / count_fitted(config, len(losses_NK)))
    return means


def _diverged(fault: str, epoch: int, step: int) -> DivergedError:
    """Say where; the command says what to change, since each has options of its own."""
    return DivergedError(f"{fault} at step {step} of epoch {epoch + 1} of the proposer's fit.")


def _loss(proposal: Proposal, errors_BK: Tensor, *, past: float, balance: float) -> Tensor:
    """Judge a batch's choice when a share of the epochs is past."""
    if past < SOFT_SHARE:
        loss = estimators.soft_target_loss(proposal.scores_BK, errors_BK, TARGET_TAU)
    else:
        loss = estimators.expected_loss(proposal.probabilities_BK, errors_BK)
    # A softmax that is sure of one crop for all images has no gradient to tell them apart; at the
    # end nothing should keep it from being sure.
    return loss - balance * (1 - past) * estimators.mean_choice_entropy(proposal.probabilities_BK)
