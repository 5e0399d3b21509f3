"""What the classifier sees in a step of training: chance, and the pixels that follow from it.

Axes: B samples, N of the split, M crops of a sample, K candidates, H and W px, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from training.data import augment, windows
from training.data.shards import Batch, send
from training.model.estimators import gumbel_noise
from training.run.state import RunState

GROWING = 0.75  # part of a training in which `--start-size` grows to the crop's side


class Chance(NamedTuple):
    """What chance decided for B images of a step, on the CPU.

    `draws` say how each is mirrored and shifted, `noise_BMK` is Gumbel noise for M draws of a crop,
    and `boxes_B4` are random windows, where the step shows any.
    """

    draws: augment.Draws
    noise_BMK: Tensor
    boxes_B4: Tensor | None

    def of(self, rows: slice) -> "Chance":
        """Take that of some of the images."""
        boxes_B4 = None if self.boxes_B4 is None else self.boxes_B4[rows]
        draws = augment.Draws(*(column[rows] for column in self.draws))
        return Chance(draws, self.noise_BMK[rows], boxes_B4)


def draw(state: RunState, num_samples: int, generator: torch.Generator, *, step: int) -> Chance:
    """Draw what a step of so many images needs, over all ranks."""
    config = state.config
    draws = augment.draw(
        num_samples, hflip=config.hflip, vflip=config.vflip, shift=config.shift,
        generator=generator,
    )  # fmt: skip
    noise_BMK = gumbel_noise((num_samples, *state.model.noise_shape), generator)
    if config.scale is None or step >= state.steps * (config.epochs - config.scale_off_epochs):
        return Chance(draws, noise_BMK, None)
    boxes_B4 = windows.draw_windows(
        num_samples, scale=config.scale, ratio=config.ratio, generator=generator
    )
    return Chance(draws, noise_BMK, boxes_B4)


def alternated(state: RunState, batch: Batch, chance: Chance, *, step: int) -> Chance:
    """Mirror each image of a batch in every other epoch, where the run asks for it."""
    if state.first_flips_N is None:
        return chance
    is_odd = bool(step // state.steps % 2)
    flips_B = state.first_flips_N[batch.indices_B] ^ is_odd
    return chance._replace(draws=chance.draws._replace(flips_B=flips_B))


def view(
    state: RunState,
    batch: Batch,
    chance: Chance,
    ahead_B: Tensor | None,
    *,
    step: int,
) -> Tensor:
    """Cut what the classifier may see, `(B, M, H, W, 3)`: crops as they lie, or windows at random.

    Args:
        state: Of the run.
        batch: On its device.
        chance: That of the batch's images.
        ahead_B: The crop that was chosen ahead, if one was.
        step: Counted from 0 over the whole run.
    """
    plan, side = state.crop_layout, _side(state, step)
    if chance.boxes_B4 is not None:
        if batch.canvases_BCC3 is None:
            raise RuntimeError("a window of a batch without canvases")
        turns_B2 = chance.draws.turns_B2
        return _resample(batch.canvases_BCC3, chance.boxes_B4, turns_B2, side)[:, None]
    wanted_BM = None if ahead_B is None else ahead_B[:, None]
    crops = augment.cut(
        batch, plan, state.model.candidates, draws=chance.draws, wanted_BM=wanted_BM
    )
    if side == plan.crop_px:
        return crops
    pictures = crops.flatten(0, 1)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(pictures), 4)
    small = _resample(pictures, whole, torch.zeros(len(pictures), 2, dtype=torch.bool), side)
    return small.reshape(*crops.shape[:2], *small.shape[1:])


def _resample(pictures: Tensor, boxes_B4: Tensor, turns_B2: Tensor, side: int) -> Tensor:
    device = pictures.device
    return windows.resample(pictures, send(boxes_B4, device), send(turns_B2, device), side)


def _side(state: RunState, step: int) -> int:
    """Give the side of the classifier's input, px; it grows linearly where the run asks for it."""
    config, crop_px = state.config, state.crop_layout.crop_px
    if config.start_size is None or config.num_explored:  # the last stage's classifier has grown
        return crop_px
    part = step / (GROWING * config.own_epochs * state.steps)
    return windows.grown_side(config.start_size, crop_px, part)
