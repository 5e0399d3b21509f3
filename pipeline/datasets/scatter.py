"""Make a version of a data set in which location matters: small images at random in clutter.

In photos like Imagenette's the object fills the middle, so a fixed crop sees it. Here each image is
placed at random, at a random scale, on a canvas of other images' textures; its box is known.
The textures are patches too small to show an object, drawn from all classes alike, so the clutter
does not reveal the class. Those of val/ come from val/, so training sees none of them.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipeline.common.errors import ImageError, SourceError
from pipeline.common.progress import SILENT, Progress
from pipeline.datasets.config import ScatterConfig
from pipeline.datasets.writer import ObjectBox, Picture, write_pictures
from pipeline.decode.rules import opened, to_rgb
from pipeline.sources.folder import SPLITS, open_source, require_source
from pipeline.sources.image import SourceImage
from pipeline.write.planning import assign_keys
from pipeline.write.resume import open_new

BANK = 400  # images of a split that textures are cut from
BANK_PX = 192  # their longer side, at most
PATCH = (0.1, 0.25)  # side of a patch over the shorter side of its image
TILES = (5, 9)  # in a row of the background
SCRAPS = (6, 14)  # patches pasted over it
SCRAP_SIDE = (0.06, 0.3)  # over the canvas side; some are as large as an image
JPEG_QUALITY = 92

Rng = np.random.Generator


class Scattered(NamedTuple):
    """Number of pictures, one for each image, and paths of skipped files of the source."""

    num_images: int
    skipped: tuple[str, ...]


def scatter(config: ScatterConfig, *, progress: Progress = SILENT) -> Scattered:
    """Write the scattered version of a source in Imagenette's layout, with `boxes.csv`.

    A picture depends only on the seed, its own path and its split's images.

    Raises:
        ConfigError: If the output folder is not empty, cannot be written, or is being written.
        SourceError: If the source is damaged, or one of its images cannot be read.
    """
    require_source(config.source)
    with open_new(config.out) as aside, TemporaryDirectory(prefix="srp-scatter-") as scratch:
        source = open_source(config.source, scratch=Path(scratch) / "images", progress=progress)
        total = sum(map(len, source.images.values()))
        makers = (maker for split in SPLITS for maker in _makers(source.images[split], config))
        num_images = write_pictures(
            config.out,
            makers,
            aside=aside,
            total=total,
            workers=config.workers,
            stage="scattering",
            progress=progress,
        )
    return Scattered(num_images, source.skipped)


def _makers(
    images: Sequence[SourceImage], config: ScatterConfig
) -> Iterator[tuple[Path, Callable[[], Picture]]]:
    """Give each image's path in the output, and the function that makes its picture."""
    in_order = sorted(images, key=lambda image: image.path)
    rng = np.random.default_rng((config.seed, len(in_order)))
    lenders = rng.choice(len(in_order), min(BANK, len(in_order)), replace=False)
    bank = [
        _read(in_order[index], BANK_PX, max_pixels=config.max_pixels) for index in lenders.tolist()
    ]
    keys = assign_keys(image.path for image in in_order)
    for image in in_order:
        # Shards of the pictures have the keys of the images, so their folds are the same.
        key = keys[image.path]
        path = Path(image.split, image.class_name, f"{key.partition('/')[2] or key}.JPEG")
        digest = hashlib.sha256(image.path.encode()).hexdigest()
        rng = np.random.default_rng((config.seed, int(digest[:16], 16)))
        yield path, functools.partial(_make, image, bank, config, rng)


def _make(
    image: SourceImage, bank: Sequence[Image.Image], config: ScatterConfig, rng: Rng
) -> Picture:
    longest = round(config.largest * config.size_px)
    rgb = _read(image, 2 * longest, max_pixels=config.max_pixels)
    picture, box = draw_scattered(rgb, bank, config=config, rng=rng)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Picture(buffer.getvalue(), box)


def _read(image: SourceImage, longest_px: int, *, max_pixels: int) -> Image.Image:
    """Decode an image upright, no larger than is needed."""
    try:
        with opened(image.read(), max_pixels=max_pixels) as file:
            file.draft("RGB", (longest_px, longest_px))
            rgb = to_rgb(ImageOps.exif_transpose(file))
    except (ImageError, OSError) as error:
        raise SourceError(
            f"cannot read {image.path}: {error}. Remove the file, or restore it."
        ) from error
    rgb.thumbnail((longest_px, longest_px), Image.Resampling.BILINEAR)
    return rgb


def draw_scattered(
    image: Image.Image, bank: Sequence[Image.Image], *, config: ScatterConfig, rng: Rng
) -> tuple[Image.Image, ObjectBox]:
    """Paste an image at random on a canvas of textures.

    Args:
        image: RGB.
        bank: RGB images that textures are cut from.
        config: Sizes.
        rng: Source of all other choices.

    Returns:
        The canvas, RGB, square, and the image's box.
    """
    side = config.size_px
    canvas = _background(bank, side, rng)
    longer = rng.uniform(config.smallest, config.largest) * side
    scale = longer / max(image.size)
    width, height = (max(1, round(scale * extent)) for extent in image.size)
    x, y = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), (x, y))
    return canvas, (x / side, y / side, (x + width) / side, (y + height) / side)


def _background(bank: Sequence[Image.Image], side: int, rng: Rng) -> Image.Image:
    """Tile a canvas with patches, and paste more patches over it."""
    canvas = Image.new("RGB", (side, side))
    num_tiles = int(rng.integers(*TILES))
    edges = [round(side * tile / num_tiles) for tile in range(num_tiles + 1)]
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            canvas.paste(_patch(bank, (right - left, bottom - top), rng), (left, top))
    for _ in range(int(rng.integers(*SCRAPS))):
        width, height = (max(1, round(side * rng.uniform(*SCRAP_SIDE))) for _ in range(2))
        x, y = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
        canvas.paste(_patch(bank, (width, height), rng), (x, y))
    return canvas


def _patch(bank: Sequence[Image.Image], size: tuple[int, int], rng: Rng) -> Image.Image:
    image = bank[int(rng.integers(len(bank)))]
    extent = max(1, round(min(image.size) * rng.uniform(*PATCH)))
    x, y = (int(rng.integers(length - extent + 1)) for length in image.size)
    patch = image.crop((x, y, x + extent, y + extent))
    turned = patch.transpose(Image.Transpose(int(rng.integers(7))))
    return turned.resize(size, Image.Resampling.BILINEAR)
