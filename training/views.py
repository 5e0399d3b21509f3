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


def mirror(batch: Batch, flips_B: Tensor, counterparts: tuple[int, ...]) -> Batch:
    """Mirror some images as a whole: each crop is mirrored and takes its counterpart's place.

    Args:
        batch: Not changed.
        flips_B: Bool, which images.
        counterparts: From `mirrored_candidates`.
    """
    flips_B = flips_B.to(batch.labels_B.device, non_blocking=True)
    order = list(counterparts)
    crops, looked = batch.crops_BKHWC, batch.glimpses_BKSS
    crops = torch.where(flips_B[:, None, None, None, None], crops[:, order].flip(3), crops)
    if looked is not None:
        looked = torch.where(flips_B[:, None, None, None], looked[:, order].flip(3), looked)
    return batch._replace(crops_BKHWC=crops, glimpses_BKSS=looked)


def shift(images_BHWC: Tensor, shifts_B2: Tensor) -> Tensor:
    """Move each image by its shift; what moves in repeats the edge.

    Args:
        images_BHWC: Of any dtype.
        shifts_B2: Whole px in y and x, each below the image's side; on the CPU.
    """
    height, width = images_BHWC.shape[1:3]
    reach = int(shifts_B2.abs().max())
    if not reach:
        return images_BHWC
    rows = torch.arange(-reach, height + reach, device=images_BHWC.device).clamp(0, height - 1)
    columns = torch.arange(-reach, width + reach, device=images_BHWC.device).clamp(0, width - 1)
    padded = images_BHWC.index_select(1, rows).index_select(2, columns)
    starts = (reach - shifts_B2).tolist()
    return torch.stack(
        [image[y : y + height, x : x + width]
         for image, (y, x) in zip(padded, starts, strict=True)]
    )  # fmt: skip


def normalise(images_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn RGB in 0 to 255 into the classifier's input `(B, 3, H, W)`, channels last."""
    scale = images_BHWC.new_tensor(std, dtype=torch.float32) * 255
    offset = images_BHWC.new_tensor(mean, dtype=torch.float32) * 255
    return ((images_BHWC - offset) / scale).permute(0, 3, 1, 2)
