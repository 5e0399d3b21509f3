"""What is done to a batch on the device: cutting, mirroring, shifting, normalising.

Chance and places are known on the CPU, pixels lie on the device, and neither waits for the other.

Axes: B samples, K candidates, M crops that are wanted of each, L glimpses that the proposer sees, N
windows of I pictures, H, W and S px, C channels; 4 ways to mirror an image.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import Box, CropLayout
from training.data.shards import Batch, send


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

    @property
    def turns_B2(self) -> Tensor:
        """Whether each image is mirrored upside down, and left to right, bool."""
        return torch.stack([self.vflips_B, self.flips_B], 1)

    @classmethod
    def none(cls, num_samples: int) -> "Draws":
        """Leave each image as it is."""
        no_B = torch.zeros(num_samples, dtype=torch.bool)
        return cls(no_B, no_B, torch.zeros(num_samples, 2, dtype=torch.int64))


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


@cache
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
    """Say where the crops lie that `cut` puts on axis K, for each of the four `Draws.ways_B`.

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


def cut(
    batch: Batch,
    plan: CropLayout,
    candidates: tuple[int, ...],
    *,
    draws: Draws | None = None,
    wanted_BM: Tensor | None = None,
) -> Tensor:
    """Cut crops of a batch's images, mirrored and shifted as whole images.

    A shift moves the box of a crop over the canvas; where the box leaves the canvas, the edge of
    the canvas is repeated. A resized candidate and a crop of the layout `tensors` have no canvas
    around them, so their own edge is repeated. It is done on bytes before crops are mixed, and no
    gradient has to pass through it.

    Args:
        batch: On any device; not changed. With crops, it carries the chosen ones already.
        plan: Where the candidates lie.
        candidates: Indices on axis K of the shards.
        draws: How each image is mirrored and shifted; None leaves all as they are.
        wanted_BM: On the CPU, which places on axis K of `candidates` are wanted of each image; None
            wants all.

    Returns:
        Uint8 `(B, M, H, W, 3)`. At each place is the crop that takes it in the mirrored image, see
        `mirrored_candidates`.
    """
    num_samples, num_crops = len(batch.labels_B), len(candidates)
    draws = Draws.none(num_samples) if draws is None else draws
    if wanted_BM is None:
        wanted_BM = torch.arange(num_crops).expand(num_samples, num_crops)
    taken_BM = _takers(mirrored_candidates(plan, candidates), draws, wanted_BM)
    sources, spots_K4 = _sources(batch, plan, candidates)
    sources_N, pictures_N, *corner = spots_K4[taken_BM.flatten()].unbind(1)
    num_pictures = torch.tensor([source.shape[1] for source in sources])
    samples_N = torch.arange(num_samples).repeat_interleave(taken_BM.shape[1])
    turns_N2, shifts_N2 = draws.turns_B2[samples_N], draws.shifts_B2[samples_N]
    windows = _Windows(
        sources_N,
        samples_N * num_pictures[sources_N] + pictures_N,
        # A mirrored image that moves down shows what lies lower in the upright one.
        torch.stack(corner, 1) + torch.where(turns_N2, shifts_N2, -shifts_N2),
        turns_N2,
    )
    crops_NHWC = _copy_windows([source.flatten(0, 1) for source in sources], windows, plan.crop_px)
    return crops_NHWC.reshape(*taken_BM.shape, *crops_NHWC.shape[1:])


def mirror(values: Tensor, draws: Draws, counterparts: Mirrored) -> Tensor:
    """Mirror some images as a whole: each glimpse is mirrored and takes its counterpart's place.

    A glimpse without a counterpart is mirrored, and keeps its place on its axis.

    Args:
        values: Glimpses `(B, L, S, S)`, or a number of each crop `(B, K)`, which takes its crop's
            place; not changed.
        draws: Which images.
        counterparts: From `mirrored_candidates`.
    """
    num_samples, num_places = values.shape[:2]
    wanted_BL = torch.arange(num_places).expand(num_samples, num_places)
    taken_BL = _takers(counterparts, draws, wanted_BL)
    if values.ndim == 2:
        return values.gather(1, send(taken_BL, values.device))
    pictures_N = (torch.arange(num_samples)[:, None] * num_places + taken_BL).flatten()
    zeros_N = torch.zeros_like(pictures_N)
    windows = _Windows(
        zeros_N,
        pictures_N,
        torch.stack([zeros_N, zeros_N], 1),
        draws.turns_B2.repeat_interleave(num_places, 0),
    )
    pictures_ISSC = values.flatten(0, 1)[..., None]
    return _copy_windows([pictures_ISSC], windows, values.shape[2]).reshape(values.shape)


def _takers(counterparts: Mirrored, draws: Draws, wanted_BM: Tensor) -> Tensor:
    """Find the crops that take the wanted places on axis K in the mirrored images."""
    places_4K = torch.tensor([range(len(counterparts.both)), *counterparts])
    return places_4K[draws.ways_B[:, None], wanted_BM]


def normalise(images_BHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Turn RGB in 0 to 255 into the classifier's input `(B, 3, H, W)`, channels last.

    Mean and standard deviation are in 0 to 255 too.
    """
    return ((images_BHWC - mean_C) / std_C).permute(0, 3, 1, 2)


class _Windows(NamedTuple):
    """N square windows, on the CPU: of which source's picture, where, and how they are mirrored.

    `corners_N2` are y and x of the first pixel, px; a window may reach over the picture's edge.
    `turns_N2` are bool: upside down, and left to right.
    """

    sources_N: Tensor
    pictures_N: Tensor
    corners_N2: Tensor
    turns_N2: Tensor


def _sources(
    batch: Batch, plan: CropLayout, candidates: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """Find where the candidates' pixels lie in a batch.

    Returns:
        Sources `(B, P, S, S, 3)`, each of P pictures an image; and of each candidate its source,
        picture, y and x, int64 `(K, 4)`.
    """
    if batch.crops_BKHWC is not None:
        return [batch.crops_BKHWC], torch.tensor([(0, k, 0, 0) for k in range(len(candidates))])
    if batch.canvases_BCC3 is None or batch.resized_BRHWC is None:
        raise RuntimeError("a batch without pixels")
    spots = [
        (0, 0, plan.boxes[k].y0, plan.boxes[k].x0)
        if plan.is_cut(k)
        else (1, plan.resized.index(k), 0, 0)
        for k in candidates
    ]
    return [batch.canvases_BCC3[:, None], batch.resized_BRHWC], torch.tensor(spots)


def _copy_windows(sources: list[Tensor], windows: _Windows, side: int) -> Tensor:
    """Copy windows of pictures `(I, S, S, C)` of some sources, `(N, side, side, C)`.

    A pixel beyond an edge is that of the edge. Nothing is indexed by pixels, which on a CPU takes
    three times as long: the nearest square inside of each picture is copied, its edges are repeated
    around it, and the window is a square of that.
    """
    rooms = torch.tensor([pictures.shape[1] - side for pictures in sources])
    inside_N2 = windows.corners_N2.clamp_min(0).minimum(rooms[windows.sources_N, None])
    beyond_N2 = inside_N2 - windows.corners_N2
    margin = int(beyond_N2.abs().max())
    near, far, whole = margin, margin + side, side + 2 * margin
    framed = sources[0].new_empty(len(inside_N2), whole, whole, sources[0].shape[3])
    order = windows.sources_N.argsort(stable=True)
    counts = windows.sources_N.bincount(minlength=len(sources)).tolist()
    parts = zip(sources, torch.split(order, counts), torch.split(framed, counts), strict=True)
    for pictures, rows, out in parts:
        out = out[:, near:far, near:far]
        _copy_squares(pictures, windows.pictures_N[rows], inside_N2[rows], out=out)
    framed[:, near:far, :near] = framed[:, near:far, near : near + 1]
    framed[:, near:far, far:] = framed[:, near:far, far - 1 : far]
    framed[:, :near] = framed[:, near : near + 1]
    framed[:, far:] = framed[:, far - 1 : far]
    found = framed
    if margin or max(counts) < len(framed):
        found = framed.new_empty(len(framed), side, side, framed.shape[3])
        _copy_squares(framed, order.argsort(), margin - beyond_N2, out=found)
    for axis, turns_N in enumerate(windows.turns_N2.unbind(1), start=1):
        if turns_N.any():
            both = torch.cat([found, found.flip(axis)])
            chosen_N = torch.arange(len(found)) + turns_N * len(found)
            found = both.index_select(0, send(chosen_N, both.device))
    return found


def _copy_squares(
    pictures_ISSC: Tensor, pictures_N: Tensor, corners_N2: Tensor, *, out: Tensor
) -> None:
    """Copy squares that lie inside of their pictures to `out`, `(N, H, H, C)`.

    Each square is one index into all squares that the pictures' memory holds, so that whole rows
    are copied.
    """
    pictures_ISSC = pictures_ISSC.contiguous()
    num_pictures, room, _, channels = pictures_ISSC.shape
    side = out.shape[1]
    if not len(out):
        return
    squares = pictures_ISSC.as_strided(
        (num_pictures * room * room - (side - 1) * (room + 1), side, side, channels),
        (channels, room * channels, channels, 1),
    )
    firsts_N = (pictures_N * room + corners_N2[:, 0]) * room + corners_N2[:, 1]
    torch.index_select(squares, 0, send(firsts_N, out.device), out=out)
