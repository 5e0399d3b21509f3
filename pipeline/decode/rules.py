"""The rules by which every decoder turns an image file into the views that shards hold.

The manifest records them:

- EXIF orientation, or XMP's where EXIF has none, is applied unless the build says `--no-exif`;
  to a TIFF always.
- Gray, palette, CMYK and YCCK become RGB by Pillow's conversion, without colour profiles.
- 16-bit gray keeps its high byte. Float images are rejected.
- Alpha is dropped, as torchvision's loader does; an animation gives its first frame.
- An image of more than `max_pixels` pixels is rejected before any is allocated.
- The image is resized once, bilinear with antialiasing, to the square canvas, and once for each
  candidate that is not a window of the canvas; the aspect ratio is not kept.

Pillow opens every file, for every decoder, and decodes all that is not a plain JPEG.

Pillow has a cap of its own, and warns of odd metadata. Both are settings of the whole process, so
only `own_process` changes them, in our own processes: the workers of a build, and the commands. In
another program Pillow's cap counts as well as `max_pixels`, and that program decides what a
warning does; where a warning is an error, the image is rejected.
"""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.common.errors import ImageError
from pipeline.common.memory import keep_freed_memory
from pipeline.format.cutting import canvas_glimpses, resized_crops
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels
from pipeline.pixels.resize import resize

# An allow-list: some of Pillow's other plugins start programs (EPS starts Ghostscript).
# MPO, the format of some cameras, is opened as JPEG.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "GIF", "WEBP")

Tag = TypeVar("Tag")


@dataclass(frozen=True, kw_only=True)
class Views:
    """One image as shards hold it.

    Attributes:
        canvas: Uint8 `(C, C, 3)`, RGB.
        resized: Uint8 `(R, 3, c, c)`, the candidates that are not plain windows of the canvas.
        glimpses: Uint8 `(K, 1, s, s)`, not padded.
        width: Width of the upright source image, px.
        height: Its height, px.
    """

    canvas: Pixels
    resized: Pixels
    glimpses: Pixels
    width: int
    height: int


class Decoder(Protocol):
    """Turns files into views, several at a time if that is faster."""

    @property
    def library(self) -> str:
        """Libraries and versions that decide the pixels, for the manifest."""
        ...

    def decode(
        self, files: Iterable[tuple[Tag, bytes | ImageError]]
    ) -> Iterator[tuple[Tag, Views | ImageError]]:
        """Yield each file's tag with its views, or with the reason why it cannot be used.

        The order is that of `files`. An error in place of a file is passed on.
        """
        ...


def views_of(source_HWC: Pixels, spec: DataSpec, *, width: int, height: int) -> Views:
    """Resize and cut an image into its views.

    Args:
        source_HWC: Its upright pixels, uint8, RGB; fewer than the file's if drafted.
        spec: Sizes and candidates.
        width: Width of the upright image in the file, px.
        height: Its height, px.
    """
    canvas = resize(source_HWC, spec.canvas_size)
    resized = resized_crops(source_HWC, spec.crop_layout)
    return Views(
        canvas=canvas,
        resized=resized,
        glimpses=canvas_glimpses(canvas, resized, spec.crop_layout, spec.glimpse_size),
        width=width,
        height=height,
    )


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Switch Pillow's own cap and warnings off, and keep memory, in a process that srp started.

    Enter before the decoding threads start, and leave after they have ended.
    """
    keep_freed_memory()  # each image needs as much as the one before
    cap = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata, for each image
        Image.MAX_IMAGE_PIXELS = None  # it would reject below a larger --max-pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = cap


@contextlib.contextmanager
def opened(data: bytes, *, max_pixels: int) -> Iterator[Image.Image]:
    """Open a file; turn every error that the image causes into the reason of its rejection.

    Raises:
        ImageError: If the file cannot be used.
    """
    if not data:
        raise ImageError("empty file")
    try:
        _check_size(_webp_size(data), max_pixels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, max_pixels)
            yield image
    except ImageError:
        raise
    except MemoryError as error:  # a header may ask for more than its pixels need
        raise ImageError("it needs more memory than there is") from error
    except Exception as error:  # Pillow's plugins raise many types for a broken file
        raise ImageError(_reason(error)) from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} px is more than --max-pixels {max_pixels}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height of a WebP, px: Pillow allocates its canvas when it opens it.

    Returns:
        The size of the canvas; 0 and 0 for files that are not WebP.

    Source: RFC 9649, section 2.7, and for the two bitstreams 2.5 and 3.4.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return _little(body[4:7]) + 1, _little(body[7:10]) + 1
    if kind == b"VP8L":
        bits = _little(body[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    is_lossy = kind == b"VP8 "
    return (_little(body[6:8]) & 0x3FFF, _little(body[8:10]) & 0x3FFF) if is_lossy else (0, 0)


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def upright_size(image: Image.Image, spec: DataSpec) -> tuple[int, int]:
    """Give width and height after EXIF orientation, px; Pillow rotates a TIFF when it opens it."""
    can_be_turned = spec.exif and image.format != "TIFF"
    turned = can_be_turned and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    width, height = image.size
    return (height, width) if turned else (width, height)


def is_plain_jpeg(image: Image.Image, spec: DataSpec) -> bool:
    """Whether every JPEG library decodes the same pixels: upright, gray or colour, 8 bits."""
    is_upright = not spec.exif or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return image.format == "JPEG" and image.mode in ("RGB", "L") and is_upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB by the module's rules.

    Raises:
        ImageError: If the mode has no rule.
    """
    if image.mode == "F":
        raise ImageError("float images have no documented range")
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Give Pillow's error on one line, without memory addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return " ".join(f"{type(error).__name__}: {error}".split())
