"""One step of a run: draw, augment, choose and classify, descend.

Axes: B samples, M draws of a crop, K candidates, H and W px, C channels.
"""

import numpy as np
import torch
from torch import nn

from training.data import augment
from training.data.processes import averages_gradients
from training.data.shards import Batch, send
from training.model.classifier import StepOutput
from training.optim.average import decay_at, move_average
from training.optim.schedule import temperature
from training.run import views
from training.run.state import RunState


def train_step(state: RunState, batch: Batch, *, step: int) -> StepOutput:
    """Take one step, in as many equal parts as `--grad-accum-steps` says.

    Chance is drawn for the images of all ranks, and each rank takes that of its own: the same
    images are mirrored, shifted and chosen in the same way however many ranks and parts share them.

    Args:
        state: Networks, optimizer and schedule; changed in place.
        batch: This rank's samples of all parts, on the run's device.
        step: Counted from 0 over the whole run; chance depends on it and the seed alone.
    """
    config, process, num_parts = state.config, state.process, state.config.grad_accum_steps
    num_own = len(batch.labels_B)
    generator = torch.Generator().manual_seed(_seed(config.seed, step, 0))
    chance = views.draw(state, num_own * process.world_size, generator, step=step)
    own = chance.of(slice(process.rank * num_own, (process.rank + 1) * num_own))
    outputs = []
    for part in range(num_parts):
        rows = slice(part * num_own // num_parts, (part + 1) * num_own // num_parts)
        # torch's own chance is for dropout and stochastic depth in the classifier.
        torch.manual_seed(_seed(config.seed, step, process.rank * num_parts + part))
        with averages_gradients(state.wrapped, wanted=part == num_parts - 1):
            output = _look(state, batch.of(rows), own.of(rows), step=step)
            (output.loss / num_parts).backward()  # type: ignore[no-untyped-call]
        outputs.append(output)
    _descend(state, step=step)
    losses, losses_B, hits_B = zip(*outputs, strict=True)
    return StepOutput(torch.stack(losses).mean(), torch.cat(losses_B), torch.cat(hits_B))


def _look(state: RunState, batch: Batch, chance: views.Chance, *, step: int) -> StepOutput:
    """Augment one part of a step's images, choose and classify."""
    config, device = state.config, batch.labels_B.device
    chance = views.alternated(state, batch, chance, step=step)
    draws, noise_BMK, _ = chance
    chooses = step >= config.random_epochs * state.steps
    ahead_B = state.chosen_ahead(batch, draws, noise_BMK[:, 0], chooses=chooses)
    crops_BMHWC = views.view(state, batch, chance, ahead_B, step=step)
    glimpses_BLSS = batch.glimpses_BLSS
    if glimpses_BLSS is not None:
        glimpses_BLSS = augment.mirror(glimpses_BLSS, draws, state.glimpse_counterparts)
    with torch.autocast(device.type, torch.bfloat16, enabled=state.autocast):
        output: StepOutput = state.wrapped(
            crops_BMHWC,
            glimpses_BLSS,
            batch.labels_B,
            send(noise_BMK, device),
            temperature(config, step=step, total_steps=config.own_epochs * state.steps),
            ways_B=send(draws.ways_B, device),
            chooses=chooses,
        )
    return output


def _descend(state: RunState, *, step: int) -> None:
    """Change the weights by their gradient, then their rate and their average."""
    config = state.config
    if config.clip_grad is not None:
        nn.utils.clip_grad_norm_(state.trained, config.clip_grad)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.scheduler.step()
    if state.average is not None:
        move_average(state.average, state.model, decay=decay_at(config, step))


def _seed(seed: int, step: int, part: int) -> int:
    """Mix the run's seed, a step and a part of its images, counted over all ranks."""
    number = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0]
    return int(number >> 1)


def set_train(state: RunState) -> None:
    """Put the networks in the mode of a training, before its steps."""
    state.model.train()
    if state.model.proposer is not None and state.config.holds_proposer:
        state.model.proposer.eval()  # a held proposer keeps the averages of its batch norms
