"""Where the K candidate crops of a canvas lie. No pixel is touched here; see `cutting.py`."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from pipeline.common.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.pixels.resize import SourceBox

_CROP_SETS = {
    "five": "the four corners and the centre",
    "strips": "thirds of the image, three upright and three lying",
    "grid3": "nine windows, three by three",
}
CANDIDATE_SETS = (*_CROP_SETS, *(f"full+{name}" for name in _CROP_SETS))
CANDIDATES_TEXT = (
    ", ".join(f"{name} ({what})" for name, what in _CROP_SETS.items())
    + f"; with the whole image in front: {', '.join(CANDIDATE_SETS[len(_CROP_SETS) :])}"
)

FIVE = ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
STRIPS = (
    "left-strip", "middle-strip", "right-strip",
    "upper-strip", "level-strip", "lower-strip",
)  # fmt: skip
GRID3 = (
    "top-left", "top", "top-right",
    "left", "centre", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
FULL = "full"
_MEMBERS = {"five": FIVE, "strips": STRIPS, "grid3": GRID3}


class Box(NamedTuple):
    """One candidate's place on the canvas, px; `x1` and `y1` are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, kw_only=True)
class CropLayout:
    """The K candidate boxes of one square canvas.

    The order is part of the shard format: axis K of every stored tensor follows it.
    """

    canvas_px: int
    crop_px: int
    names: tuple[str, ...]
    boxes: tuple[Box, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def is_cut(self, candidate: int) -> bool:
        """Whether a candidate is a window of the canvas; others are resized parts of the image."""
        box = self.boxes[candidate]
        return (box.x1 - box.x0, box.y1 - box.y0) == (self.crop_px, self.crop_px)

    @cached_property
    def resized(self) -> tuple[int, ...]:
        """Candidates that are not windows of the canvas, in order."""
        return tuple(k for k in range(len(self)) if not self.is_cut(k))

    def source_box(self, candidate: int, *, width: int, height: int) -> "SourceBox":
        """Locate a candidate in the upright source image, px.

        Args:
            candidate: Index on axis K.
            width: Width of the source image, px.
            height: Height of the source image, px.
        """
        box, side = self.boxes[candidate], self.canvas_px
        return (
            box.x0 * width / side,
            box.y0 * height / side,
            box.x1 * width / side,
            box.y1 * height / side,
        )

    def normalised(self) -> tuple[tuple[float, float, float, float], ...]:
        """Return the boxes as fractions of the canvas side, `(x0, y0, x1, y1)`."""
        side = self.canvas_px
        return tuple((b.x0 / side, b.y0 / side, b.x1 / side, b.y1 / side) for b in self.boxes)

    def indices(self, candidates: str) -> tuple[int, ...]:
        """Return the indices of some candidates on axis K.

        Args:
            candidates: A candidate set, or names of candidates joined by commas.

        Raises:
            ConfigError: If the layout lacks one of them.
        """
        is_set = candidates in CANDIDATE_SETS
        wanted = candidate_names(candidates) if is_set else candidates.split(",")
        missing = [name for name in wanted if name not in self.names]
        if missing:
            raise ConfigError(
                f"--candidates must be in the shards; got {candidates!r}, but they hold only "
                f"{', '.join(self.names)}. Name some of these, or build shards with "
                f"--candidates {candidates if is_set else 'full+grid3'}."
            )
        if len(set(wanted)) < len(wanted):
            raise ConfigError(
                f"--candidates must name each crop once; got {candidates!r}. Drop the repeats."
            )
        return tuple(self.names.index(name) for name in wanted)


def candidate_names(candidate_set: str) -> tuple[str, ...]:
    """List a candidate set's members in the order of axis K.

    Raises:
        ConfigError: If the set is unknown.
    """
    if candidate_set not in CANDIDATE_SETS:
        raise ConfigError(
            f"--candidates must be one of {', '.join(CANDIDATE_SETS)}; got {candidate_set!r}."
        )
    with_full, _, members = candidate_set.rpartition("+")
    return (FULL, *_MEMBERS[members]) if with_full else _MEMBERS[members]


def place_crops(candidate_set: str, *, canvas_px: int, crop_px: int) -> CropLayout:
    """Place the candidates of one square canvas.

    Args:
        candidate_set: `five` (TL, TR, BL, BR, centre), `grid3` (nine windows, row by row, five of
            which are those of `five`) or `strips` (three vertical and three horizontal thirds,
            resized to the crop). `full+` in front of one puts the whole canvas, resized, first.
        canvas_px: Side of the canvas, px.
        crop_px: Side of every crop, px.

    Raises:
        ConfigError: If the crop exceeds the canvas or the set is unknown.
    """
    if not 0 < crop_px <= canvas_px:
        raise ConfigError(
            f"crop size must fit the canvas; got --crop-size {crop_px} px for --canvas-size "
            f"{canvas_px} px. Lower --crop-size or raise --canvas-size."
        )
    names = candidate_names(candidate_set)
    if STRIPS[0] in names and canvas_px < 3:
        raise ConfigError(
            f"a canvas must have room for three strips; got --canvas-size {canvas_px} px for "
            f"--candidates {candidate_set}. Raise --canvas-size."
        )
    boxes = _places(canvas_px, crop_px)
    return CropLayout(
        canvas_px=canvas_px,
        crop_px=crop_px,
        names=names,
        boxes=tuple(boxes[name] for name in names),
    )


def _places(canvas_px: int, crop_px: int) -> dict[str, Box]:
    """Place every candidate of every set."""
    far = canvas_px - crop_px
    steps = (0, round(far / 2.0), far)  # torchvision's center_crop rounds half to even as well
    corners = [(x, y) for y in steps for x in steps]
    places = {
        name: Box(x, y, x + crop_px, y + crop_px)
        for name, (x, y) in zip(GRID3, corners, strict=True)
    }
    edges = [round(part * canvas_px / 3) for part in range(4)]
    thirds = list(itertools.pairwise(edges))
    upright = [Box(near, 0, far, canvas_px) for near, far in thirds]
    lying = [Box(0, near, canvas_px, far) for near, far in thirds]
    places |= dict(zip(STRIPS, upright + lying, strict=True))
    return places | {FULL: Box(0, 0, canvas_px, canvas_px)}
