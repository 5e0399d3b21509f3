"""READ FIRST: one step of a training, from a batch to new weights."""

import numpy as np
import torch
from torch import nn

from training.data import augment
from training.data.shards import Batch
from training.model.classifier import StepOutput
from training.model.estimators import gumbel_noise
from training.run.schedule import temperature
from training.run.state import Trainer


def train_step(trainer: Trainer, batch: Batch, *, step: int) -> StepOutput:
    """Take one step: augment, choose, classify, go down.

    Args:
        trainer: The run.
        batch: On the run's device.
        step: Counted from 0 over the whole run; chance depends on it and on the rank alone.
    """
    config, device, num_samples = trainer.config, batch.labels_B.device, len(batch.labels_B)
    seed = _step_seed(trainer, step)
    torch.manual_seed(seed)  # of dropout and stochastic depth inside the classifier
    generator = torch.Generator().manual_seed(seed)
    draws = augment.draw(
        num_samples, hflip=config.hflip, vflip=config.vflip, shift=config.shift,
        generator=generator,
    )  # fmt: skip
    noise_BMK = gumbel_noise((num_samples, *trainer.model.noise_shape), generator)
    tau = temperature(config, step=step, total_steps=config.epochs * trainer.steps)
    chooses = step >= config.random_epochs * trainer.steps
    crops = augment.cut(batch, trainer.plan, trainer.model.candidates)
    shown = augment.augment(
        crops,
        batch.glimpses_BLSS,
        draws,
        trainer.counterparts,
        trainer.looked_counterparts,
        trainer.model.chosen_ahead(noise_BMK[:, 0], chooses=chooses),
    )

    with torch.autocast(device.type, torch.bfloat16, enabled=trainer.autocast):
        output: StepOutput = trainer.wrapped(
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
        nn.utils.clip_grad_norm_(trainer.trained, config.clip_grad)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.scheduler.step()
    return output


def _step_seed(trainer: Trainer, step: int) -> int:
    entropy = (trainer.config.seed, step, trainer.process.rank)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
