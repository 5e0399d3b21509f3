"""What is done to a batch on the device: mirroring, shifting, normalising.

Axes: B samples, K candidates, L that the proposer sees, H and W px, C = 3 channels, S glimpse px.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import Box, CropLayout
from training.data.shards import Batch


class Draws(NamedTuple):
    """What chance decided for one training step.

    `flips_B` and `vflips_B` are bool: mirror this image left to right, and upside down.
    `shifts_B2` are px in y and x.
    """

    flips_B: Tensor
    vflips_B: Tensor
    shifts_B2: Tensor

    @property
    def ways_B(self) -> Tensor:
        """How each image is mirrored, int64: 0 not, 1 left to right, 2 upside down, 3 both."""
        return self.flips_B + 2 * self.vflips_B


class Mirrored(NamedTuple):
    """Which crop takes each candidate's place in a mirrored image, as positions on axis K.

    `across` is for left to right, `down` for upside down, `both` for both.
    """

    across: tuple[int, ...]
    down: tuple[int, ...]
    both: tuple[int, ...]


def draw(
    num_samples: int, *, hflip: float, vflip: float, shift: int, generator: torch.Generator
) -> Draws:
    """Draw one step's augmentation, on the CPU: equal on every device, and no device is awaited."""
    chances = torch.rand(num_samples, generator=generator)
    shifts = torch.randint(-shift, shift + 1, (num_samples, 2), generator=generator)
    return Draws(chances < hflip, torch.rand(num_samples, generator=generator) < vflip, shifts)


def mirrored_candidates(plan: CropLayout, candidates: tuple[int, ...]) -> Mirrored:
    """Find, for each candidate, the one that lies where it would be in a mirrored image.

    A candidate whose counterpart is not among the chosen ones keeps its place on axis K, though
    its crop, mirrored, lies elsewhere; `mirrored_boxes` says where.
    """
    boxes = [plan.boxes[k] for k in candidates]
    ways = ([_reflected(box, way, plan.canvas_px) for box in boxes] for way in (1, 2, 3))
    return Mirrored(
        *(
            tuple(boxes.index(box) if box in boxes else k for k, box in enumerate(reflected))
            for reflected in ways
        )
    )


def mirrored_boxes(
    plan: CropLayout, candidates: tuple[int, ...]
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Say where the crops lie that `mirror` puts on axis K, for each of the four `Draws.ways_B`.

    Returns:
        Fractions of the canvas, x0, y0, x1, y1, of K candidates, four times.
    """
    boxes, side = [plan.boxes[k] for k in candidates], plan.canvas_px
    ways = []
    for way in range(4):
        reflected = [_reflected(box, way, side) for box in boxes]
        lies = [
            box if other in boxes else other for box, other in zip(boxes, reflected, strict=True)
        ]
        ways.append(tuple(tuple(edge / side for edge in box) for box in lies))
    return tuple(ways)


def _reflected(box: Box, way: int, side: int) -> Box:
    """Mirror a box of a canvas in one of the `Draws.ways_B`."""
    if way & 1:
        box = box._replace(x0=side - box.x1, x1=side - box.x0)
    if way & 2:
        box = box._replace(y0=side - box.y1, y1=side - box.y0)
    return box


def cut(batch: Batch, plan: CropLayout, candidates: tuple[int, ...]) -> tuple[Tensor, ...]:
    """View the crops of a batch, each uint8 `(B, H, W, 3)`; nothing is copied.

    Args:
        batch: On any device. With crops, it carries the chosen ones already.
        plan: Where the candidates lie.
        candidates: Indices on axis K.
    """
    if batch.crops_BKHWC is not None:
        return batch.crops_BKHWC.unbind(1)
    if batch.canvases_BCC3 is None or batch.resized_BRHWC is None:
        raise RuntimeError("a batch without pixels")
    crops = []
    for candidate in candidates:
        x0, y0, x1, y1 = plan.boxes[candidate]
        crops.append(
            batch.canvases_BCC3[:, y0:y1, x0:x1]
            if plan.is_cut(candidate)
            else batch.resized_BRHWC[:, plan.resized.index(candidate)]
        )
    return tuple(crops)


class Views(NamedTuple):
    """What the model is shown of B samples, all of it uint8; see `Batch`."""

    crops_BKHWC: Tensor
    glimpses_BLSS: Tensor | None


def augment(
    crops: tuple[Tensor, ...],
    glimpses_BLSS: Tensor | None,
    draws: Draws,
    counterparts: Mirrored,
    glimpse_counterparts: Mirrored,
    chosen_B: Tensor | None = None,
) -> Views:
    """Mirror and shift one batch as its draws say.

    Args:
        crops: From `cut`; not changed.
        glimpses_BLSS: Or None; not changed.
        draws: On the CPU.
        counterparts: From `mirrored_candidates`, of the crops.
        glimpse_counterparts: The same of the glimpses.
        chosen_B: On the CPU, the one crop of each image that is wanted; None wants all.
    """
    if chosen_B is None:
        crops_BKHWC = torch.stack(crops, 1)
    else:
        places_4K = torch.tensor([tuple(range(len(crops))), *counterparts])
        crops_BKHWC = _pick(crops, places_4K[draws.ways_B, chosen_B])
        counterparts = Mirrored((0,), (0,), (0,))
    crops_BKHWC = mirror(crops_BKHWC, draws, counterparts)
    if glimpses_BLSS is not None:
        glimpses_BLSS = mirror(glimpses_BLSS.clone(), draws, glimpse_counterparts)
    return Views(shift(crops_BKHWC, draws.shifts_B2), glimpses_BLSS)


def _pick(crops: tuple[Tensor, ...], chosen_B: Tensor) -> Tensor:
    """Copy one crop of each image, `(B, 1, H, W, 3)`."""
    return torch.stack([crops[k][row] for row, k in enumerate(chosen_B.tolist())])[:, None]


def mirror(values: Tensor, draws: Draws, counterparts: Mirrored) -> Tensor:
    """Mirror some images as a whole: each crop is mirrored and takes its counterpart's place.

    A crop without a counterpart is mirrored, and keeps its place on axis K.

    Args:
        values: Crops `(B, K, H, W, ...)`, or a number of each `(B, K)`, which takes its crop's
            place; changed in place and returned.
        draws: Which images, on the CPU.
        counterparts: From `mirrored_candidates`.
    """
    ways_B = draws.ways_B
    for way, (places, axes) in enumerate(zip(counterparts, ((3,), (2,), (2, 3)), strict=True), 1):
        rows = (ways_B == way).nonzero()[:, 0].to(values.device, non_blocking=True)
        if not len(rows):
            continue
        moved = values[rows][:, list(places)]
        values[rows] = moved.flip(axes) if values.ndim > 2 else moved
    return values


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
