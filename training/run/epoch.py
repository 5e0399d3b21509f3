"""One pass over the training split, which may stop between two steps and go on there later.

Axes: R ranks, S steps since the last look at the loss, B of a batch.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.common.errors import DivergedError
from pipeline.common.wording import few
from training.data.processes import gather_ranks, share_buffers, sum_over_ranks
from training.run.record import EpochPart, EpochRecord
from training.run.signals import Stop
from training.run.state import RunState
from training.run.step import train_step
from training.score.evaluate import OnImages, count_images

REPORT_STEPS = 10  # steps between looks at the loss, each of which waits for the device


class Progress(NamedTuple):
    """Where a run is.

    `stage` is `train`, `val`, `table`, `losses` or `fit`; `done` of `total` images, on all ranks.
    `loss` and `top1` (%) are means over the epoch so far, None outside training.
    """

    stage: str
    epoch: int
    done: int
    total: int
    loss: float | None = None
    top1: float | None = None


OnProgress = Callable[[Progress], None]


def counting(on_progress: OnProgress, stage: str, total: int, *, epoch: int = 1) -> OnImages:
    """Turn numbers of images that have passed in a stage into where a run is."""
    return count_images(lambda done, of: on_progress(Progress(stage, epoch, done, of)), total)


class _Seen(NamedTuple):
    """A step whose loss nobody has looked at yet."""

    step: int
    rows_B: Tensor
    losses_B: Tensor


def train_epoch(
    state: RunState, begun: EpochPart, *, stop: Stop, on_progress: OnProgress
) -> EpochPart:
    """Take the steps of an epoch that are left.

    Args:
        state: The run, as it was after the steps that are done.
        begun: Those.
        stop: Looked at between steps.
        on_progress: Told of images as they pass.

    Returns:
        How far it has come: to its end, or to where somebody wanted the process to end.

    Raises:
        DivergedError: If a loss or a weight stopped being a number.
    """
    state.model.train()
    if state.model.proposer is not None and state.config.holds_proposer:
        state.model.proposer.eval()  # it is held, and so are the averages of its batch norms
    process, per_step = state.process, state.config.batch_size * state.process.world_size
    sums = torch.tensor(begun.sums_of(process.rank), dtype=torch.float64, device=process.device)
    state.batches.load_state_dict({"epoch": begun.epoch, "num_seen": begun.step * per_step})
    unseen: list[_Seen] = []
    started = time.monotonic()
    step = begun.step
    batches = state.batches if begun.step < state.steps else ()
    for step, batch in enumerate(batches, start=begun.step + 1):
        output = train_step(state, batch, step=begun.epoch * state.steps + step - 1)
        sums += torch.stack([output.losses_B.sum(), output.hits_B.sum()]).detach()
        unseen.append(_Seen(step, batch.indices_B, output.losses_B.detach()))
        is_last = step == state.steps
        if step % REPORT_STEPS and not is_last and not (stop.wanted and process.world_size == 1):
            continue
        flagged = torch.cat([sums, sums.new_tensor([bool(stop.wanted)])])
        loss, hits, wanted = sum_over_ranks(flagged, process).tolist()  # all ranks stop together
        if not math.isfinite(loss):
            raise _lost(state, begun.epoch, unseen)
        unseen.clear()
        done, total = step * per_step, state.steps * per_step
        on_progress(Progress("train", begun.epoch + 1, done, total, loss / done, 100 * hits / done))
        if wanted and not is_last:
            break
    share_buffers(state.model, process)
    _check_weights(state, begun.epoch, step)
    return EpochPart(
        epoch=begun.epoch,
        step=step,
        sums=tuple((float(loss), float(hits)) for loss, hits in gather_ranks(sums, process)),
        seconds=begun.seconds + time.monotonic() - started,
    )


def epoch_record(part: EpochPart, state: RunState) -> EpochRecord:
    """Draw the figures of an epoch whose steps are all done."""
    num_images = part.step * state.config.batch_size * state.process.world_size
    loss, hits = (sum(column) for column in zip(*part.sums, strict=True))
    return EpochRecord(
        epoch=part.epoch + 1,
        train_loss=loss / num_images,
        train_top1=100 * hits / num_images,
        val_top1=None,
        images_per_s=num_images / part.seconds,
        seconds=part.seconds,
    )


def _lost(state: RunState, epoch: int, unseen: list[_Seen]) -> DivergedError:
    """Name the first step, over all processes, and the samples whose losses are no numbers in it.

    One process's NaN reaches the weights of all, so that innocent samples lose NaN one step later.
    """
    losses_RSB = gather_ranks(torch.stack([seen.losses_B for seen in unseen]), state.process)
    rows_RSB = gather_ranks(torch.stack([seen.rows_B for seen in unseen]), state.process)
    is_bad_RSB = ~losses_RSB.isfinite()
    bad_steps = is_bad_RSB.any(2).any(0).nonzero()[:, 0].tolist()
    if not bad_steps:  # numbers of which the sum is none
        fault = "the training loss must stay a number; got a sum that is none"
        return _diverged(fault, epoch, unseen[-1].step)
    first = bad_steps[0]
    is_bad_RB = is_bad_RSB[:, first]
    keys = state.batches.keys(rows_RSB[:, first][is_bad_RB].tolist())
    bad = float(losses_RSB[:, first][is_bad_RB][0])
    fault = f"the training loss must stay a number; got {bad} for {few(keys)}"
    return _diverged(fault, epoch, unseen[first].step, keys)


def _check_weights(state: RunState, epoch: int, step: int) -> None:
    """Stop where the last step broke the weights, which no loss has shown yet."""
    if name := broken_weights(state.model):
        raise _diverged(f"weights must stay numbers; got others in {name}", epoch, step)


def broken_weights(model: nn.Module) -> str | None:
    """Name one of a model's tensors that are not all numbers, if there is one."""
    state = model.state_dict().items()
    return next((name for name, tensor in state if not torch.isfinite(tensor).all()), None)


def _diverged(fault: str, epoch: int, step: int, keys: tuple[str, ...] = ()) -> DivergedError:
    return DivergedError(
        f"{fault} at step {step} of epoch {epoch + 1}. "
        "The checkpoint before it is kept. Train again under another --experiment with a lower "
        "--lr or with --clip-grad 1.",
        keys=keys,
    )
