"""What the classifier sees in a step of training: chance, and the pixels that follow from it.

Axes: B samples, N of the split, M crops of a sample, H and W px, C channels.
"""

import torch
from torch import Tensor

from training.data import augment, windows
from training.data.shards import Batch, send
from training.run.state import RunState

GROWING = 0.75  # part of a training in which `--start-size` grows to the crop's side


def draw(state: RunState, batch: Batch, generator: torch.Generator, *, step: int) -> augment.Draws:
    """Draw how a step mirrors and shifts its images."""
    config = state.config
    draws = augment.draw(
        len(batch.labels_B), hflip=config.hflip, vflip=config.vflip, shift=config.shift,
        generator=generator,
    )  # fmt: skip
    if state.first_flips_N is None:
        return draws
    is_odd = bool(step // state.steps % 2)
    return draws._replace(flips_B=state.first_flips_N[batch.indices_B] ^ is_odd)


def view(
    state: RunState,
    batch: Batch,
    draws: augment.Draws,
    ahead_B: Tensor | None,
    generator: torch.Generator,
    *,
    step: int,
) -> Tensor:
    """Cut what the classifier may see, `(B, M, H, W, 3)`: crops as they lie, or windows at random.

    Args:
        state: Of the run.
        batch: On its device.
        draws: How each image is mirrored and shifted.
        ahead_B: The crop that was chosen ahead, if one was.
        generator: Draws the windows.
        step: Counted from 0 over the whole run.
    """
    config, plan, canvases_BCC3 = state.config, state.crop_layout, batch.canvases_BCC3
    side, turns_B2 = _side(state, step), draws.turns_B2
    if config.scale is not None and step < state.steps * (config.epochs - config.scale_off_epochs):
        if canvases_BCC3 is None:
            raise RuntimeError("a window of a batch without canvases")
        boxes_B4 = windows.draw_windows(
            len(turns_B2), scale=config.scale, ratio=config.ratio, generator=generator
        )
        return _resample(canvases_BCC3, boxes_B4, turns_B2, side)[:, None]
    wanted_BM = None if ahead_B is None else ahead_B[:, None]
    crops = augment.cut(batch, plan, state.model.candidates, draws=draws, wanted_BM=wanted_BM)
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
