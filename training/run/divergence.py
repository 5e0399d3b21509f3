"""When a loss or a weight stops being a number: the first step at fault, and its samples.

Axes: R ranks, S steps since the loss was last checked, B samples.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import DivergedError, few
from training.data.processes import gather_ranks, wait_for_main
from training.run.state import RunState
from training.saved.folder import RunPaths


class UncheckedStep(NamedTuple):
    """A step whose loss has not been checked yet."""

    step: int
    rows_B: Tensor  # on the CPU
    losses_B: Tensor


def loss_fault(
    unchecked: Sequence[UncheckedStep], *, state: RunState, paths: RunPaths, epoch: int
) -> DivergedError:
    """Name the first step, over all ranks, and its samples whose losses are not finite.

    One rank's NaN reaches the weights of all, so the losses of good samples become NaN one step
    later.
    """
    process = state.process
    losses_RSB = gather_ranks(torch.stack([each.losses_B for each in unchecked]), process)
    rows_SB = torch.stack([each.rows_B for each in unchecked]).to(process.device)
    rows_RSB = gather_ranks(rows_SB, process)
    is_bad_RSB = ~losses_RSB.isfinite()
    bad_steps = is_bad_RSB.any(2).any(0).nonzero()[:, 0].tolist()
    if not bad_steps:  # each is finite, their sum is not
        fault = "the training loss must stay finite; got a sum that is not"
        return diverged(fault, epoch, unchecked[-1].step)
    first = bad_steps[0]
    is_bad_RB = is_bad_RSB[:, first]
    keys = state.batches.keys(rows_RSB[:, first][is_bad_RB].tolist())
    if process.is_main:
        write_file(paths.diverged, json.dumps({"keys": keys}, indent=1).encode())
    wait_for_main(process)  # torchrun kills the others once one has ended
    bad = float(losses_RSB[:, first][is_bad_RB][0])
    fault = f"the training loss must stay finite; got {bad} for {few(keys)}"
    return diverged(fault, epoch, unchecked[first].step, keys)


def diverged(fault: str, epoch: int, step: int, keys: tuple[str, ...] = ()) -> DivergedError:
    """Make the error of a training that diverged, with what to do."""
    return DivergedError(
        f"{fault} at step {step} of epoch {epoch + 1}. "
        "The checkpoint before it is kept. Train again under another --experiment with a lower "
        "--lr or with --clip-grad 1.",
        keys=keys,
    )
