"""Fit a proposer to the losses of classifiers on each crop.

Axes: N samples of the training split, B of a batch, K candidates, L crops whose glimpses
the proposer sees, S glimpse px.
"""

import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import DivergedError
from pipeline.common.progress import SILENT, Progress
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process
from training.model import estimators
from training.model.classifier import SelectiveClassifier, autocast
from training.model.proposer import Proposal, Proposer
from training.run.train import broken_weights
from training.score.choices import choose, glimpse_batches
from training.score.classify import OnImages, counting

TARGET_TAU = 0.3  # a chance of an error that is lower by this weighs e times as much
SOFT_SHARE = 2 / 3  # of the epochs; the others sharpen the choice


def count_fitted(config: TrainConfig, num_samples: int) -> int:
    """Count the samples of a fit; a last batch that is not full is skipped."""
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
    glimpse_counterparts: augment.Mirrored,
    on_rows: OnImages,
) -> list[float]:
    """Fit a proposer to the classifier's chance of an error on each crop.

    The chance of an error, 1 - exp(-loss), is what top-1 counts. The loss itself is unbounded: a
    few images with a huge loss would decide. The first epochs fit the choice to a softmax of these
    chances, since a confident wrong choice has no gradient otherwise; the last ones minimise the
    exact expectation of the chance.

    Args:
        proposer: Changed in place.
        glimpses_NLSS: Glimpses of the training split.
        losses_NK: Out-of-fold.
        config: Epochs, batch size, `proposer_lr`, `balance`, `hflip`, `vflip`, `weight_decay`
            and seed of the fit.
        counterparts: Which crop takes each candidate's place in a mirrored image.
        glimpse_counterparts: The same for the glimpses.
        on_rows: Called with the number of samples of each step.

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
            looked = augment.mirror(glimpses_NLSS[rows_B], draws, glimpse_counterparts)
            errors = augment.mirror(errors_NK[rows_B], draws, counterparts).to(device)
            with autocast(config, device):
                proposal = proposer(looked.to(device), draws.ways_B.to(device))
            loss = _loss(proposal, errors, past=epoch / config.epochs, balance=config.balance)
            if not loss.isfinite():
                raise _diverged(f"the loss must stay finite; got {loss.item()}", epoch, step)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(errors.gather(1, proposal.chosen_B[:, None]).sum())
            on_rows(len(rows_B))
        if name := broken_weights(proposer):
            fault = f"weights must stay finite; got NaN or infinity in {name}"
            raise _diverged(fault, epoch, steps)
        means.append(total * config.epochs / count_fitted(config, len(losses_NK)))
    return means


def _diverged(fault: str, epoch: int, step: int) -> DivergedError:
    """Name the step; the caller adds the fix, since each command has its own options."""
    return DivergedError(f"{fault} at step {step} of epoch {epoch + 1} of the proposer's fit.")


def _loss(proposal: Proposal, errors_BK: Tensor, *, past: float, balance: float) -> Tensor:
    """Compute the loss of a batch's choice when a share `past` of the epochs is done."""
    if past < SOFT_SHARE:
        loss = estimators.soft_target_loss(proposal.scores_BK, errors_BK, TARGET_TAU)
    else:
        loss = estimators.expected_loss(proposal.probabilities_BK, errors_BK)
    # A softmax that is sure of one crop for all images has no gradient that tells them apart. At
    # the end nothing should keep it from being sure.
    return loss - balance * (1 - past) * estimators.mean_choice_entropy(proposal.probabilities_BK)


def fit_and_choose(
    model: SelectiveClassifier,
    losses_NK: Tensor,
    shards: ShardFolder,
    *,
    process: Process,
    progress: Progress = SILENT,
) -> Tensor:
    """Fit a model's proposer to losses, then choose on the validation split.

    Args:
        model: Its proposer is changed in place; its config is that of the fit.
        losses_NK: Losses on the training split, on the model's candidates.
        shards: Shards of the losses.
        process: This process.
        progress: Shows images.

    Returns:
        Float32, of N validation samples, rows that sum to 1.

    Raises:
        DivergedError: If the fit stopped yielding numbers.
    """
    if model.proposer is None:
        raise RuntimeError("a fit without a proposer")
    num_fitted = count_fitted(model.config, len(losses_NK))
    seen = glimpse_batches(model, shards, process, split="train")
    fit_proposer(
        model.proposer,
        torch.cat([glimpses_BLSS.cpu().clone() for glimpses_BLSS in seen]),  # they are used again
        losses_NK,
        model.config,
        counterparts=augment.mirrored_candidates(shards.crop_layout, model.candidates),
        glimpse_counterparts=augment.mirrored_candidates(shards.crop_layout, model.looked_at),
        on_rows=counting(progress, "fitting the proposer", num_fitted),
    )
    model.eval()
    shown = glimpse_batches(model, shards, process, split="val")
    return torch.cat([choose(model, glimpses_BLSS) for glimpses_BLSS in shown])
