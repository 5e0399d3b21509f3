"""READ FIRST: one step of a training, from a batch to new weights."""

import numpy as np
import torch
from torch import nn

from training.data import augment
from training.data.shards import Batch
from training.model.classifier import StepOutput
from training.model.estimators import gumbel_noise
from training.run.schedule import temperature
from training.run.state import RunState


def train_step(state: RunState, batch: Batch, *, step: int) -> StepOutput:
    """Take one step: augment, choose, classify, go down.

    Args:
        state: The run.
        batch: On the run's device.
        step: Counted from 0 over the whole run; chance depends on it and on the rank alone.
    """
    config, device, num_samples = state.config, batch.labels_B.device, len(batch.labels_B)
    seed = _step_seed(state, step)
    torch.manual_seed(seed)  # of dropout and stochastic depth inside the classifier
    generator = torch.Generator().manual_seed(seed)
    draws = augment.draw(
        num_samples, hflip=config.hflip, vflip=config.vflip, shift=config.shift,
        generator=generator,
    )  # fmt: skip
    noise_BMK = gumbel_noise((num_samples, *state.model.noise_shape), generator)
    tau = temperature(config, step=step, total_steps=config.epochs * state.steps)
    chooses = step >= config.random_epochs * state.steps
    crops = augment.cut(batch, state.plan, state.model.candidates)
    shown = augment.augment(
        crops,
        batch.glimpses_BLSS,
        draws,
        state.counterparts,
        state.looked_counterparts,
        state.model.chosen_ahead(noise_BMK[:, 0], chooses=chooses),
    )

    with torch.autocast(device.type, torch.bfloat16, enabled=state.autocast):
        output: StepOutput = state.wrapped(
            shown.crops_BKHWC,
            shown.glimpses_BLSS,
            batch.labels_B,
            noise_BMK.to(device, non_blocking=True),
            tau,
            ways_B=draws.ways_B.to(device, non_blocking=True),
            chooses=chooses,
        )
    output.loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(state.trained, config.clip_grad)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.scheduler.step()
    return output


def _step_seed(state: RunState, step: int) -> int:
    entropy = (state.config.seed, step, state.process.rank)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
