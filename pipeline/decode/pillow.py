"""Pillow as a decoder: the reference, computed faster where that changes no pixel."""

import functools
import io
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow_version

from pipeline.common.errors import ImageError
from pipeline.decode.rules import (
    Tag,
    Views,
    is_plain_jpeg,
    opened,
    to_rgb,
    upright_size,
    views_of,
)
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels

# A draft is at least this many canvases wide and high, so that the resize still has to blend.
DRAFT_CANVASES = 2


class PillowDecoder:
    """The reference: Pillow's pixels, computed faster where that changes none of them."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec

    @property
    def library(self) -> str:
        """Versions of Pillow, its JPEG library, and simplejpeg."""
        return f"{pillow_name()}, {_libjpeg()}, simplejpeg {version('simplejpeg')}"

    def decode(
        self, files: Iterable[tuple[Tag, bytes | ImageError]]
    ) -> Iterator[tuple[Tag, Views | ImageError]]:
        """Decode one file at a time."""
        for tag, data in files:
            yield tag, self.decode_one(data)

    def decode_one(self, data: bytes | ImageError) -> Views | ImageError:
        """Decode one file."""
        if isinstance(data, ImageError):
            return data
        try:
            source_HWC, (width, height) = self.upright(data)
        except ImageError as error:
            return error
        return views_of(source_HWC, self._spec, width=width, height=height)

    def upright(self, data: bytes) -> tuple[Pixels, tuple[int, int]]:
        """Decode a file by the rules.

        Returns:
            Uint8 `(H, W, 3)`, RGB, smaller than the file's image if drafted; width and height of
            the upright image in the file, px.

        Raises:
            ImageError: If the file cannot be used.
        """
        is_turbo = turbo_is_exact() and not self._spec.draft
        # `opened` blames the file for every error, so only the reading is in its block.
        with opened(data, max_pixels=self._spec.max_pixels) as image:
            size = upright_size(image, self._spec)
            is_plain = is_turbo and is_plain_jpeg(image, self._spec)
            plain = _read_plain(data) if is_plain else None
            source_HWC = np.asarray(self._read(image)) if plain is None else plain
        return source_HWC, size

    def _read(self, image: Image.Image) -> Image.Image:
        if self._spec.draft:
            smallest = DRAFT_CANVASES * self._spec.canvas_size
            image.draft(None, (smallest, smallest))
        return to_rgb(ImageOps.exif_transpose(image) if self._spec.exif else image)


def _read_plain(data: bytes) -> Pixels | None:
    """Decode a plain JPEG; None leaves reading or rejecting it to Pillow."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    return pixels


def pillow_name() -> str:
    """Name the package that `PIL` comes from; pillow-simd appends .post to Pillow's versions."""
    package = "pillow-simd" if ".post" in pillow_version else "pillow"
    return f"{package} {pillow_version}"


def _libjpeg() -> str:
    turbo = features.version_feature("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"


@functools.cache
def turbo_is_exact() -> bool:
    """Whether simplejpeg and Pillow decode a JPEG to the same pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 67, 3), np.uint8)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", subsampling=subsampling)
        theirs = np.asarray(Image.open(buffer))
        if not np.array_equal(simplejpeg.decode_jpeg(buffer.getvalue(), "RGB"), theirs):
            return False
    return True
