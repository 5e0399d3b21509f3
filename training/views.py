"""What is done to a batch on the device: mirroring, shifting, normalising.

Axes: B samples, K candidates, H and W px, C = 3 channels, S glimpse px.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.crops import CropPlan
from training.data import Batch


class Draws(NamedTuple):
    """What chance decided for one training step.

    `flips_B` is bool: mirror this image. `shifts_B2` are px in y and x.
    """

    flips_B: Tensor
    shifts_B2: Tensor


def draw(num_samples: int, *, hflip: float, shift: int, generator: torch.Generator) -> Draws:
    """Draw one step's augmentation, on the CPU: equal on every device, and no device is awaited."""
    chances = torch.rand(num_samples, generator=generator)
    shifts = torch.randint(-shift, shift + 1, (num_samples, 2), generator=generator)
    return Draws(chances < hflip, shifts)


def mirrored_candidates(plan: CropPlan, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Find, for each candidate, the one that lies where it would be in a mirrored image.

    A candidate whose counterpart is not among the chosen ones stays where it is.
    """
    boxes = [plan.boxes[k] for k in candidates]
    mirrored = []
    for position, box in enumerate(boxes):
        image = box._replace(x0=plan.canvas_px - box.x1, x1=plan.canvas_px - box.x0)
        mirrored.append(boxes.index(image) if image in boxes else position)
    return tuple(mirrored)


def augment(batch: Batch, draws: Draws, counterparts: tuple[int, ...]) -> Batch:
    """Mirror and shift one batch as its draws say.

    Args:
        batch: Not changed.
        draws: On the CPU.
        counterparts: From `mirrored_candidates`.
    """
    mirrored = mirror(batch, draws.flips_B, counterparts)
    return mirrored._replace(crops_BKHWC=shift(mirrored.crops_BKHWC, draws.shifts_B2))


def mirror(batch: Batch, flips_B: Tensor, counterparts: tuple[int, ...]) -> Batch:
    """Mirror some images as a whole: each crop is mirrored and takes its counterpart's place.

    Args:
        batch: Not changed.
        flips_B: Bool, which images; on the CPU.
        counterparts: From `mirrored_candidates`.
    """
    rows = flips_B.nonzero()[:, 0].to(batch.labels_B.device, non_blocking=True)
    crops, looked = batch.crops_BKHWC, batch.glimpses_BKSS
    crops = _mirror_rows(crops, rows, counterparts)
    if looked is not None:
        looked = _mirror_rows(looked, rows, counterparts)
    return batch._replace(crops_BKHWC=crops, glimpses_BKSS=looked)


def _mirror_rows(images: Tensor, rows: Tensor, counterparts: tuple[int, ...]) -> Tensor:
    """Mirror along axis 3, W, some rows of `(B, K, H, W, ...)`."""
    mirrored = images.clone()
    mirrored[rows] = images[rows][:, list(counterparts)].flip(3)
    return mirrored


def shift(crops_BKHWC: Tensor, shifts_B2: Tensor) -> Tensor:
    """Move all crops of an image by its shift; the edge that is left keeps its pixels.

    It is done on bytes before the crops are mixed, so no gradient has to pass through it.

    Args:
        crops_BKHWC: Uint8.
        shifts_B2: Whole px in y and x, each below the crop's side; on the CPU.
    """
    height, width = crops_BKHWC.shape[2:4]
    shifted = crops_BKHWC.clone()
    for out, crop, (down, right) in zip(shifted, crops_BKHWC, shifts_B2.tolist(), strict=True):
        rows, source_rows = _overlap(height, down)
        columns, source_columns = _overlap(width, right)
        out[:, rows, columns] = crop[:, source_rows, source_columns]
    return shifted


def _overlap(side: int, move: int) -> tuple[slice, slice]:
    """Give where pixels land and where they come from along one axis."""
    reach = abs(move)
    near, far = slice(0, side - reach), slice(reach, side)
    return (far, near) if move > 0 else (near, far)


def normalise(images_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn RGB in 0 to 255 into the classifier's input `(B, 3, H, W)`, channels last."""
    scale = images_BHWC.new_tensor(std, dtype=torch.float32) * 255
    offset = images_BHWC.new_tensor(mean, dtype=torch.float32) * 255
    return ((images_BHWC - offset) / scale).permute(0, 3, 1, 2)
