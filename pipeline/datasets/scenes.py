"""The embedded data set: drawn, cluttered scenes with one salient object each.

Imagenette needs a download and shows its objects in the middle. These scenes need neither network
nor licence, place their object at random and record its box, so that a fresh clone runs everything
and location matters. Only the shape reveals the class: colours are random, and the clutter has
none of the ten shapes. Points are complex numbers, x + iy, with y down.
"""

import cmath
import functools
import io
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.common.progress import SILENT, Progress
from pipeline.datasets.config import SceneConfig
from pipeline.datasets.writer import ObjectBox, Picture, write_pictures
from pipeline.write.resume import open_new

SUPERSAMPLE = 2  # scenes are drawn at this multiple of their size, then averaged: smooth edges
STENCIL_PX = 256
OUTLINE = 0.035  # width over the longer side of the object
MAX_TURN_DEG = 25.0
JPEG_QUALITY = 90

# Gray levels. The background lies between the object's two tones, so a gray glimpse shows an edge.
BACKGROUND = (75, 181)
CLUTTER, CLUTTER_WEIGHT = (30, 226), 0.4
GRAIN = 8
TONES = (((150, 256), 8), ((0, 90), 247))  # of fill and outline: bright in dark, dark in bright

INK, HOLE = 255, 0
Points = list[complex]
Part = tuple[Points, int]  # a closed line and what fills it: INK, or HOLE to cut into earlier parts
Rng = np.random.Generator


def _rim(turn: float, radius: float = 1) -> complex:
    """Give the point on a circle `turn` full turns clockwise from the top."""
    return cmath.rect(radius, math.tau * (turn - 0.25))


def _disc(radius: float, centre: complex = 0) -> Points:
    return [centre + _rim(step / 64, radius) for step in range(64)]


def _bar(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [complex(x0, y0), complex(x1, y0), complex(x1, y1), complex(x0, y1)]


def _arrow(rng: Rng) -> list[Part]:
    neck, half = rng.uniform(-0.1, 0.2), rng.uniform(0.2, 0.3)
    return [(_bar(-1, -half, neck + 0.1, half), INK), ([neck - 0.8j, 1 + 0j, neck + 0.8j], INK)]


def _crescent(rng: Rng) -> list[Part]:
    return [(_disc(1), INK), (_disc(0.8, rng.uniform(0.45, 0.6)), HOLE)]


def _cross(rng: Rng) -> list[Part]:
    half = rng.uniform(0.2, 0.32)
    return [(_bar(-1, -half, 1, half), INK), (_bar(-half, -1, half, 1), INK)]


def _fish(rng: Rng) -> list[Part]:
    height = rng.uniform(0.42, 0.58)
    body = [complex(0.7 * point.real - 0.3, height * point.imag) for point in _disc(1)]
    tail = [0.2 + 0j, 1 - 0.6j, 0.8 + 0j, 1 + 0.6j]
    return [(body, INK), (tail, INK), (_disc(0.11, -0.62 - 0.12j), HOLE)]


def _flower(rng: Rng) -> list[Part]:
    num_petals = int(rng.integers(5, 8))
    petals = (_disc(1.9 / num_petals, _rim(k / num_petals, 0.66)) for k in range(num_petals))
    return [*((petal, INK) for petal in petals), (_disc(0.6), INK), (_disc(0.25), HOLE)]


def _house(rng: Rng) -> list[Part]:
    eaves, door = rng.uniform(-0.2, 0.05), rng.uniform(-0.4, 0.1)
    roof = [complex(-1, eaves), -1j, complex(1, eaves)]
    walls, doorway = _bar(-0.75, eaves - 0.1, 0.75, 1), _bar(door, 0.35, door + 0.35, 1)
    return [(roof, INK), (walls, INK), (doorway, HOLE)]


def _ladder(rng: Rng) -> list[Part]:
    num_rungs = int(rng.integers(3, 6))
    heights = [2 * (rung + 0.5) / num_rungs - 1 for rung in range(num_rungs)]
    rungs = [(_bar(-0.4, y - 0.09, 0.4, y + 0.09), INK) for y in heights]
    return [(_bar(-0.5, -1, -0.3, 1), INK), (_bar(0.3, -1, 0.5, 1), INK), *rungs]


def _ring(rng: Rng) -> list[Part]:
    return [(_disc(1), INK), (_disc(rng.uniform(0.5, 0.7)), HOLE)]


def _spiral(rng: Rng) -> list[Part]:
    start, num_turns = rng.random(), rng.uniform(2.0, 2.4)
    spine = [(start + num_turns * step / 96, 0.06 + 0.83 * step / 96) for step in range(97)]
    outer, inner = ([_rim(turn, r + half) for turn, r in spine] for half in (0.11, -0.11))
    return [([*outer, *reversed(inner)], INK)]


def _star(rng: Rng) -> list[Part]:
    num_points, waist = int(rng.integers(5, 7)), rng.uniform(0.38, 0.48)
    return [([_rim(k / num_points / 2, (1, waist)[k % 2]) for k in range(2 * num_points)], INK)]


_DRAWN = (_arrow, _crescent, _cross, _fish, _flower, _house, _ladder, _ring, _spiral, _star)
SHAPES = {draw.__name__.lstrip("_"): draw for draw in _DRAWN}
CLASSES = tuple(SHAPES)

_SQUARE = _bar(-1, -1, 1, 1)  # clutter: outlines, and the largest half breadth over the side
DISTRACTORS = ((_SQUARE, 0.006), (_SQUARE, 0.08), (_SQUARE[:3], 0.08), (_disc(1), 0.08))


def draw_scene(
    class_name: str,
    *,
    size_px: int,
    rng: Rng,
    sides: tuple[float, float] = (SceneConfig.smallest, SceneConfig.largest),
) -> tuple[Image.Image, ObjectBox]:
    """Draw one object of a class at random on a cluttered background.

    Args:
        class_name: One of `CLASSES`.
        size_px: Side of the image, px.
        rng: Source of all other choices.
        sides: Shortest and longest of the object's longer side, as a fraction of the image's.

    Returns:
        The image, RGB, and the box of the object with its outline.
    """
    side = size_px * SUPERSAMPLE
    scene = _draw_background(size_px, rng)
    fill, outline = _draw_masks(class_name, round(side * rng.uniform(*sides)), rng)
    x, y = (int(rng.integers(side - extent + 1)) for extent in outline.size)
    fill_levels, outline_level = TONES[rng.integers(2)]
    scene.paste((outline_level,) * 3, (x, y), outline)
    scene.paste(tuple(rng.integers(*fill_levels, 3).tolist()), (x, y), fill)
    box = (x / side, y / side, (x + outline.width) / side, (y + outline.height) / side)
    return _add_grain(scene.reduce(SUPERSAMPLE), rng), box


def _draw_masks(class_name: str, object_px: int, rng: Rng) -> tuple[Image.Image, Image.Image]:
    """Draw masks of the object's fill and of its larger outline, cropped to the outline's box."""
    turn = cmath.rect(1, math.radians(rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG)))
    stencil = Image.new("L", (STENCIL_PX, STENCIL_PX))
    draw = ImageDraw.Draw(stencil)
    for points, tone in SHAPES[class_name](rng):
        # Shapes reach sqrt(2) at most, at the corners of the square from -1 to 1.
        draw.polygon(_pixels((1.5 + 1.5j + turn * p) * STENCIL_PX / 3 for p in points), fill=tone)
    shape = stencil.crop(stencil.getbbox())
    border = max(1, round(object_px * OUTLINE))
    scale = (object_px - 2 * border) / max(shape.size)
    shape = shape.resize((round(shape.width * scale), round(shape.height * scale)))
    fill = Image.new("L", (shape.width + 4 * border, shape.height + 4 * border))
    fill.paste(shape, (2 * border, 2 * border))
    # A box blur reaches exactly `border` px, so it grows the shape by that much.
    outline = fill.filter(ImageFilter.BoxBlur(border)).point([HOLE] + [INK] * 255)
    return fill.crop(outline.getbbox()), outline.crop(outline.getbbox())


def _draw_background(size_px: int, rng: Rng) -> Image.Image:
    """Blend a gradient, coarse noise and clutter, supersampled, between the object's tones."""
    gradient, noise = (
        Image.fromarray(rng.integers(*BACKGROUND, (cells, cells, 3), dtype=np.uint8)).resize(
            (size_px, size_px), Image.Resampling.BILINEAR
        )
        for cells in (2, int(rng.integers(5, 15)))
    )
    side = size_px * SUPERSAMPLE
    plain = Image.blend(gradient, noise, 0.4).resize((side, side), Image.Resampling.NEAREST)
    cluttered = plain.copy()
    draw = ImageDraw.Draw(cluttered)
    for _ in range(int(rng.integers(30, 61))):
        outline, breadth = DISTRACTORS[rng.integers(len(DISTRACTORS))]
        centre, turn = complex(*rng.random(2)), _rim(rng.random())
        width, height = rng.uniform(0.02, 0.12), breadth * rng.uniform(0.25, 1)
        stretched = (complex(width * p.real, height * p.imag) for p in outline)
        corners = _pixels(side * (centre + turn * p) for p in stretched)
        draw.polygon(corners, fill=tuple(rng.integers(*CLUTTER, 3).tolist()))
    return Image.blend(plain, cluttered, CLUTTER_WEIGHT)


def _add_grain(scene: Image.Image, rng: Rng) -> Image.Image:
    """Add noise of up to `GRAIN` gray levels to every pixel, as a sensor would."""
    pixels = np.asarray(scene, np.int16)
    noise = rng.integers(-GRAIN, GRAIN + 1, (*pixels.shape[:2], 1), dtype=np.int16)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _pixels(points: Iterable[complex]) -> list[tuple[float, float]]:
    return [(point.real, point.imag) for point in points]


def draw_dataset(config: SceneConfig, *, progress: Progress = SILENT) -> int:
    """Write scenes of every class in Imagenette's layout, and `boxes.csv` next to them.

    An image depends on the seed, its split, class and index alone, so a larger set begins with
    the smaller one. The images appear in `config.out` once all are drawn, or not at all.

    Returns:
        The number of images.

    Raises:
        ConfigError: If `config.out` is not empty, cannot be written, or is being written.
    """
    planned = [
        (Path(split, name, f"{name}_{index:04d}.JPEG"), (config.seed, split_index, label, index))
        for split_index, split in enumerate(("train", "val"))
        for label, name in enumerate(CLASSES)
        for index in range((config.train, config.val)[split_index])
    ]
    makers = ((path, functools.partial(_make, path, seeds, config)) for path, seeds in planned)
    with open_new(config.out) as aside:
        return write_pictures(
            config.out,
            makers,
            aside=aside,
            total=len(planned),
            workers=1,
            stage="drawing scenes",
            progress=progress,
        )


def _make(path: Path, seeds: tuple[int, ...], config: SceneConfig) -> Picture:
    rng = np.random.default_rng(seeds)
    sides = (config.smallest, config.largest)
    scene, box = draw_scene(path.parent.name, size_px=config.size_px, rng=rng, sides=sides)
    encoded = io.BytesIO()
    scene.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return Picture(encoded.getvalue(), box)
