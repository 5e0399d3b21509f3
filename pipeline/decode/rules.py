"""From an image file's bytes to the views that shards hold, by one documented set of rules.

Every decoder keeps these, and the manifest records them:

- EXIF orientation, or XMP's where EXIF has none, is applied unless the build says `--no-exif`;
  to a TIFF always.
- Gray, palette, CMYK and YCCK become RGB by Pillow's conversion, without colour profiles.
- 16-bit gray keeps its high byte. Float images are refused.
- Alpha is dropped, as torchvision's loader does; of an animation the first frame counts.
- More than `max_pixels` pixels are refused before any is allocated.
- Then one antialiased bilinear resize to the square canvas, and one of each candidate that is no
  window of it; the aspect is not kept.

Pillow opens every file, whoever decodes it, and what is not a plain JPEG it decodes itself.

Pillow has a cap of its own, and warns of odd metadata. Both are settings of the whole process, so
nothing here touches them but `own_process`, for processes that are ours: the workers of a build,
and the commands. In anyone else's, Pillow's cap counts beside `max_pixels`, and that program
decides what a warning does; where it is an error, the image is refused.
"""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.common.errors import ImageError
from pipeline.format.cutting import canvas_glimpses, resized_crops
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels
from pipeline.pixels.resize import resize

# An allow-list: some of Pillow's other plugins start programs (EPS starts Ghostscript).
# MPO, the format of some cameras, comes in through JPEG and has no name of its own here.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "GIF", "WEBP")


@dataclass(frozen=True, kw_only=True)
class Views:
    """One image as shards hold it.

    Attributes:
        canvas: Uint8 `(C, C, 3)`, RGB.
        resized: Uint8 `(R, 3, c, c)`, the candidates that are not plain windows of the canvas.
        glimpses: Uint8 `(K, 1, s, s)`, not padded.
        width: Of the source image, upright, px.
        height: The same, px.
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

    def decode(self, files: Iterable[bytes]) -> Iterator[Views | ImageError]:
        """Yield each file's views in order, or why it cannot be used."""
        ...


def views_of(source_HWC: Pixels, spec: DataSpec, *, width: int, height: int) -> Views:
    """Make what shards hold of an image.

    Args:
        source_HWC: Its upright pixels, uint8, RGB; smaller than the file's where it is a draft.
        spec: Sizes and candidates.
        width: Of the file's image, upright, px.
        height: The same, px.
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
    """Let the rules of this module alone decide while a process of ours decodes.

    Enter it before the threads that decode start, and leave it when they have ended.
    """
    cap = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, once for each image
        Image.MAX_IMAGE_PIXELS = None  # it would warn or refuse below a larger --max-pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = cap


@contextlib.contextmanager
def opened(data: bytes, *, max_pixels: int) -> Iterator[Image.Image]:
    """Read a file's header, and turn whatever goes wrong with the image into its reason.

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
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them
        raise ImageError(_reason(error)) from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} px is more than --max-pixels {max_pixels}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read width and height of a WebP, px, whose canvas Pillow allocates as it opens it.

    Returns:
        The canvas of an animation, else of the picture; 0 and 0 for other files.

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
    """Give width and height after EXIF orientation, px; Pillow turns a TIFF when it opens it."""
    can_be_turned = spec.exif and image.format != "TIFF"
    turned = can_be_turned and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    width, height = image.size
    return (height, width) if turned else (width, height)


def is_plain_jpeg(image: Image.Image, spec: DataSpec) -> bool:
    """Whether any JPEG library must see the same pixels: upright, gray or colour, 8 bits."""
    is_upright = not spec.exif or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return image.format == "JPEG" and image.mode in ("RGB", "L") and is_upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB by the module's rules.

    Raises:
        ImageError: If there is no rule for it.
    """
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
