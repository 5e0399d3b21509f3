"""Fit a proposer to the losses of classifiers on each crop.

Axes: N samples of the training split, B of a batch, K candidates, L crops whose glimpses
the proposer sees, S glimpse px.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import DivergedError
from pipeline.common.progress import SILENT, Progress
from training.choose.config import DistillConfig
from training.data import augment
from training.data.processes import Process, share_tensors
from training.data.shards import send
from training.model import estimators
from training.model.classifier import SelectiveClassifier, uses_bfloat16
from training.model.proposer import MapProposer, Proposal, Proposer
from training.run.state import broken_weights
from training.score.choices import glimpse_batches
from training.score.classify import OnImages, counting

TARGET_TAU = 0.3  # a chance of an error that is lower by this weighs e times as much
SOFT_SHARE = 2 / 3  # of the epochs; the others sharpen the choice
COARSE_SHARE = 1 / 2  # of the epochs of a large map; they see it at half of its sides
COARSE_PX = 64  # the least side of such a map's glimpse: in smaller ones objects would vanish
HALVED_AT_ONCE = 1024  # images, as floats
FITTING = "fit"


def count_fitted(wanted: DistillConfig, num_samples: int) -> int:
    """Count the samples of a fit; a last batch that is not full is skipped."""
    return wanted.epochs * _count_steps(wanted, num_samples) * min(wanted.batch_size, num_samples)


def _count_steps(wanted: DistillConfig, num_samples: int) -> int:
    return max(1, num_samples // wanted.batch_size)


def fit_proposer(
    proposer: Proposer,
    glimpses_NLSS: Tensor,
    losses_NK: Tensor,
    wanted: DistillConfig,
    *,
    seed: int,
    hflip: float,
    amp: bool,
    counterparts: augment.Mirrored,
    glimpse_counterparts: augment.Mirrored,
    on_rows: OnImages,
) -> list[float]:
    """Fit a proposer to the classifier's chance of an error on each crop.

    The chance of an error, 1 - exp(-loss), is what top-1 counts. The loss itself is unbounded: a
    few images with a huge loss would decide. The first epochs fit the choice to a softmax of these
    chances, since a confident wrong choice has no gradient otherwise; the last ones minimise the
    exact expectation of the chance. A large map first learns from glimpses of half the sides,
    which take half as long, and chooses as well in the end (training/results/README.md).

    Args:
        proposer: Changed in place.
        glimpses_NLSS: Glimpses of the training split.
        losses_NK: Out-of-fold.
        wanted: How to fit.
        seed: Of order and mirroring.
        hflip: Probability of mirroring left to right.
        amp: Whether to compute in bfloat16.
        counterparts: Which crop takes each candidate's place in a mirrored image.
        glimpse_counterparts: The same for the glimpses.
        on_rows: Called with the number of samples of each step.

    Returns:
        The mean chance of an error on the chosen crops in each epoch, as they were chosen then.

    Raises:
        DivergedError: If a loss or a weight stopped being a number.
    """
    device = next(proposer.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    steps = _count_steps(wanted, len(losses_NK))
    optimizer, schedule = _optimizer(proposer, wanted, steps=steps)
    proposer.train()
    glimpses_NLSS = glimpses_NLSS.to(device)
    is_coarse = isinstance(proposer, MapProposer) and glimpses_NLSS.shape[-1] >= COARSE_PX
    coarse_NLSS = _halved(glimpses_NLSS) if is_coarse else glimpses_NLSS
    errors_NK = -torch.expm1(-losses_NK).to(device)
    means = []
    for epoch in range(wanted.epochs):
        seen_NLSS = coarse_NLSS if epoch < COARSE_SHARE * wanted.epochs else glimpses_NLSS
        order = torch.randperm(len(losses_NK), generator=generator)
        losses, chosen_errors = [], []  # read at the end of the epoch: no step waits for the device
        for rows_B in torch.split(order, wanted.batch_size)[:steps]:
            draws = augment.draw(
                len(rows_B), hflip=hflip, vflip=wanted.vflip, shift=0, generator=generator
            )
            rows_B = send(rows_B, device)
            looked = augment.mirror(seen_NLSS[rows_B], draws, glimpse_counterparts)
            errors = augment.mirror(errors_NK[rows_B], draws, counterparts)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                proposal = proposer(looked, send(draws.ways_B, device))
            loss = _loss(proposal, errors, past=epoch / wanted.epochs, balance=wanted.balance)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
            chosen_errors.append(errors.gather(1, proposal.chosen_B[:, None]).mean())
            on_rows(len(rows_B))
        for step, value in enumerate(torch.stack(losses).tolist(), start=1):
            if not math.isfinite(value):
                raise _diverged(f"the loss must stay finite; got {value}", epoch, step)
        if name := broken_weights(proposer):
            fault = f"weights must stay finite; got NaN or infinity in {name}"
            raise _diverged(fault, epoch, steps)
        means.append(float(torch.stack(chosen_errors).mean()))
    return means


def _optimizer(
    proposer: Proposer, wanted: DistillConfig, *, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make AdamW and its one cycle over all epochs of so many steps."""
    rate, decay = wanted.proposer_lr, wanted.weight_decay
    optimizer = torch.optim.AdamW(proposer.parameters(), rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=wanted.epochs * steps
    )
    return optimizer, schedule


def _halved(glimpses_NLSS: Tensor) -> Tensor:
    """Average glimpses down to half of their sides, uint8."""
    side = glimpses_NLSS.shape[-1] // 2
    parts = torch.split(glimpses_NLSS, HALVED_AT_ONCE)
    return torch.cat([F.adaptive_avg_pool2d(part.float(), side).round().byte() for part in parts])


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


def fit_to_losses(
    model: SelectiveClassifier,
    losses_NK: Tensor,
    wanted: DistillConfig,
    *,
    shards: ShardFolder,
    process: Process,
    progress: Progress = SILENT,
) -> list[float]:
    """Fit a model's proposer to losses on the training split.

    Each process fits by itself; rank 0's weights are kept.

    Args:
        model: Its proposer is changed in place, and may be one whose weights are held afterwards.
        losses_NK: Losses on the training split, on the model's candidates.
        wanted: How to fit; the networks, and the seed where it names none, are the model's.
        shards: Shards of the losses.
        process: This process among its peers.
        progress: Shows images.

    Returns:
        See `fit_proposer`.

    Raises:
        DivergedError: If the fit stopped yielding numbers.
    """
    if model.proposer is None:
        raise RuntimeError("a fit without a proposer")
    num_fitted = count_fitted(wanted, len(losses_NK))
    seen = glimpse_batches(model, shards, process, split="train")
    glimpses_NLSS = torch.cat([glimpses_BLSS.clone() for glimpses_BLSS in seen])  # used again
    model.proposer.requires_grad_(True)
    means = fit_proposer(
        model.proposer,
        glimpses_NLSS,
        losses_NK,
        wanted,
        seed=model.config.seed if wanted.seed is None else wanted.seed,
        hflip=model.config.hflip,
        amp=uses_bfloat16(model.config, process.device),
        counterparts=augment.mirrored_candidates(shards.crop_layout, model.candidates),
        glimpse_counterparts=augment.mirrored_candidates(shards.crop_layout, model.looked_at),
        on_rows=counting(progress, FITTING, num_fitted),
    )
    model.proposer.requires_grad_(not model.config.holds_proposer)
    share_tensors(model.proposer.state_dict().values(), process)
    return means
