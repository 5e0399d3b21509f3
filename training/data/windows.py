"""Random windows of a canvas, and any window resized to the classifier's input, on the device.

Axes: B samples, Y and X px of a picture, H and W px of the input, C channels.
"""

import math

import torch
from torch import Tensor

SIDES = 8  # px; a growing input has sides that are multiples of this, until it is the crop's


def draw_windows(
    num_samples: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw a window of each canvas, anywhere in it, on the CPU.

    Areas are uniform, and ratios of width to height uniform in their logarithm, as those of timm's
    random resized crops. Where a ratio does not fit the canvas, the nearest that does is taken.

    Returns:
        Fractions of the canvas, x0, y0, x1, y1, float32 `(B, 4)`.
    """
    parts_B4 = torch.rand(num_samples, 4, generator=generator)
    least, narrowest = scale[0], math.log(ratio[0])
    area_B = least + (scale[1] - least) * parts_B4[:, 0]
    ratio_B = (narrowest + (math.log(ratio[1]) - narrowest) * parts_B4[:, 1]).exp()
    width_B = (area_B * ratio_B).sqrt().clamp_max(1).maximum(area_B)
    sides_B2 = torch.stack([width_B, area_B / width_B], 1)
    corners_B2 = parts_B4[:, 2:] * (1 - sides_B2)
    return torch.cat([corners_B2, corners_B2 + sides_B2], 1)


def resample(pictures_BYXC: Tensor, boxes_B4: Tensor, turns_B2: Tensor, side: int) -> Tensor:
    """Resize a window of each picture to a square, as Pillow does with bilinear and a box.

    It is two products of matrices, one for the rows and one for the columns, whose weights are a
    triangle's as wide as the pixels of the smaller of both pictures: shrinking averages.

    Args:
        pictures_BYXC: Uint8 or float.
        boxes_B4: Fractions of the picture, x0, y0, x1, y1.
        turns_B2: Bool: whether each window is mirrored upside down, and left to right.
        side: Of the square, px.

    Returns:
        Float32 `(B, H, W, C)`, in the range of the pictures.
    """
    num_samples, height, width, channels = pictures_BYXC.shape
    x0, y0, x1, y1 = boxes_B4.unbind(1)
    rows_BHY = _weights(y0, y1, turns_B2[:, 0], height, side)
    columns_BWX = _weights(x0, x1, turns_B2[:, 1], width, side)
    lines_BYCX = pictures_BYXC.transpose(2, 3).contiguous().float()
    low_BHCX = rows_BHY @ lines_BYCX.flatten(2)
    small = low_BHCX.reshape(num_samples, side * channels, width) @ columns_BWX.mT
    return small.reshape(num_samples, side, channels, side).transpose(2, 3).contiguous()


def _weights(starts_B: Tensor, stops_B: Tensor, turned_B: Tensor, room: int, side: int) -> Tensor:
    """Weigh a line's pixels for each of the resized line, `(B, side, room)`; they sum to 1."""
    steps_B1 = ((stops_B - starts_B) * (room / side))[:, None]
    places = torch.arange(side, device=starts_B.device) + 0.5
    from_start = torch.where(turned_B[:, None], side - places, places)
    centres = starts_B[:, None] * room + from_start * steps_B1
    pixels = torch.arange(room, device=starts_B.device) + 0.5
    distances = (pixels - centres[:, :, None]).abs() / steps_B1.clamp_min(1)[:, :, None]
    weights = (1 - distances).clamp_min(0)
    return weights / weights.sum(2, keepdim=True)


def input_sides(start: int, crop_px: int) -> tuple[int, ...]:
    """List the sides of a growing input, px: multiples of `SIDES`, and the crop's at the end."""
    first = max(1, start // SIDES) * SIDES
    return (*range(first, crop_px, SIDES), crop_px)


def grown_side(start: int, crop_px: int, part: float) -> int:
    """Give the side of a growing input, px, when a part of its growth is over, 0 to 1."""
    sides = input_sides(start, crop_px)
    return sides[min(len(sides) - 1, math.floor(part * len(sides)))]
