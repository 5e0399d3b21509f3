"""The moving average of a run's weights that `--model-ema` validates, saves and uses.

Every sum is taken where the weights lie, all weights at once, and no value is read back.
"""

import copy

import torch
from torch import nn

from training.config import TrainConfig
from training.model.classifier import SelectiveClassifier

WARMUP_POWER = 2 / 3  # as timm's default


def begin_average(model: SelectiveClassifier, config: TrainConfig) -> SelectiveClassifier | None:
    """Copy networks before their first step, if the run keeps an average of them."""
    return copy.deepcopy(model).requires_grad_(False) if config.model_ema else None


def move_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Move an average towards the weights and the averages of batch norms after a step.

    Args:
        average: Changed in place.
        model: That has taken the step.
        decay: How much of itself the average keeps; 0 copies the model.
    """
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    ours, theirs = ([pair[side] for pair in floats] for side in (0, 1))
    torch._foreach_lerp_(ours, theirs, 1 - decay)  # in one loop where the device has it
    for own, new in pairs:
        if not own.is_floating_point():
            own.copy_(new)  # batches that a norm has seen


def decay_at(config: TrainConfig, step: int) -> float:
    """Say how much of itself the average keeps after a step, counted from 0, as timm does.

    The first step is copied, whatever the average was before. With the warm-up it keeps less at
    first: after the n-th step no more than 1 - n^(-2/3).
    """
    warm = 1 - float((1 + step) ** -WARMUP_POWER)
    if config.model_ema_warmup:
        return min(config.model_ema_decay, warm)
    return config.model_ema_decay if step else 0.0
