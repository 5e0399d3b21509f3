"""From an image file's bytes to the canvas, by one documented set of rules.

Every decoder keeps these, and the manifest records them:

- EXIF orientation is applied unless the build says `--no-exif`.
- Gray, palette, CMYK and YCCK become RGB by Pillow's conversion, without colour profiles.
- 16-bit gray keeps its high byte. Float images are refused.
- Alpha is dropped, as torchvision's loader does; of an animation the first frame counts.
- More than `max_pixels` pixels are refused before any is allocated.
- Then one antialiased bilinear resize to the square canvas; the aspect is not kept.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from pipeline.crops import Pixels
from pipeline.errors import ImageError

# An allow-list: some of Pillow's other plugins start programs (EPS starts Ghostscript).
# MPO, the format of some cameras, comes in through JPEG and has no name of its own here.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "GIF", "WEBP")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One image on its canvas.

    Attributes:
        canvas: Uint8 `(C, C, 3)`, RGB.
        width: Of the source image, upright, px.
        height: The same, px.
    """

    canvas: Pixels
    width: int
    height: int


class Decoder(Protocol):
    """Turns files into canvases."""

    @property
    def name(self) -> str:
        """Library and versions that decide the pixels, for the manifest."""
        ...

    def decode(self, data: bytes) -> Decoded:
        """Decode one file.

        Raises:
            ImageError: If it cannot be used; the message is the reason.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PillowDecoder:
    """The reference decoder.

    Attributes:
        canvas_px: Side of the canvas, px.
        exif: Whether EXIF orientation is applied.
        max_pixels: Largest image that is decoded, px.
    """

    canvas_px: int
    exif: bool
    max_pixels: int

    @property
    def name(self) -> str:
        """Pillow's version and its JPEG library's."""
        turbo = features.version_feature("libjpeg_turbo")
        jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
        return f"pillow {pillow_version}, {jpeg}"

    def decode(self, data: bytes) -> Decoded:
        """Decode one file; see the module for the rules."""
        if not data:
            raise ImageError("empty file")
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd metadata, once for each image
                rgb = self._read(data)
                side = (self.canvas_px, self.canvas_px)
                canvas = rgb.resize(side, Image.Resampling.BILINEAR)
        except (ImageError, MemoryError):  # the machine's fault is not the image's
            raise
        except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
            raise ImageError(_reason(error)) from error
        return Decoded(canvas=np.asarray(canvas), width=rgb.width, height=rgb.height)

    def _read(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > self.max_pixels:
                raise ImageError(f"{width}x{height} px is more than --max-pixels {self.max_pixels}")
            return _to_rgb(ImageOps.exif_transpose(image) if self.exif else image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("float images have no documented range")
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Say on one line, and without memory addresses, why Pillow gave up."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return " ".join(f"{type(error).__name__}: {error}".split())


def make_decoder(name: str, *, canvas_px: int, exif: bool, max_pixels: int) -> Decoder:
    """Make the decoder that `--decoder` names."""
    del name  # one decoder so far; BuildConfig has checked the name
    # Our own cap is checked before pixels are allocated; Pillow's would warn or refuse below it.
    Image.MAX_IMAGE_PIXELS = None
    return PillowDecoder(canvas_px=canvas_px, exif=exif, max_pixels=max_pixels)
