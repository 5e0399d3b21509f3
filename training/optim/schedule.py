"""Learning rate and temperature as functions of the step."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from training.config import TrainConfig

WARMUP_START = 0.01


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Make the schedule that `--sched` names; it is stepped after every training step.

    `onecycle` warms up over its first 30 % and moves the momentum against the learning rate
    (Smith and Topin 2018). `cosine` and `step` hold the momentum and may be warmed up.
    """
    total = config.own_epochs * steps_per_epoch
    if config.sched == "onecycle":
        has_momentum = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            cycle_momentum=has_momentum,
        )
    warmup = config.warmup_epochs * steps_per_epoch
    main: LRScheduler
    if config.sched == "cosine":
        main = CosineAnnealingLR(optimizer, T_max=max(1, total - warmup))
    else:
        main = StepLR(optimizer, config.decay_epochs * steps_per_epoch, gamma=config.decay_rate)
    if not warmup:
        return main
    start = LinearLR(optimizer, start_factor=WARMUP_START, total_iters=warmup)
    return SequentialLR(optimizer, [start, main], milestones=[warmup])


def temperature(config: TrainConfig, *, step: int, total_steps: int) -> float:
    """Compute the Gumbel-Softmax temperature: geometric from `tau_start` to `tau_end`."""
    part = step / max(1, total_steps - 1)
    return float(config.tau_start * (config.tau_end / config.tau_start) ** part)
