"""Encode and decode canvases: `--codec`.

Encoding is deterministic for the libraries that `Codec.library` names. Decoding checks the size
that a file announces before it allocates memory, and may run in several threads at once. `raw` is
`.npy`: its pixels need no decoding, and `decode` returns a view of them. `shards/README.md` says
which codec is for what.
"""

import io
import itertools
import struct
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import simplejpeg
import zstandard
from PIL import Image, features
from PIL import __version__ as pillow_version

from pipeline.format.npy import NPY_START, Member, decode_array, encode_array, npy_header
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels

Data = bytes | memoryview

EXTENSIONS = {
    "raw": "npy",
    "zstd": "delta.zst",
    "png": "png",
    "webp": "webp",
    "jpeg": "jpg",
}

IMAGE_CODECS = ("png", "webp", "jpeg")  # they write image files

# Encoded photos, as a share of their raw bytes, with some margin: shards are planned before any
# image is encoded.
_SHARES = {"raw": 1.0, "zstd": 0.45, "png": 0.55, "webp": 0.4, "jpeg": 0.2}

# The fastest zstd: the filter compresses. Deltas have no repeats, and a search for repeats would
# make them larger and both directions slower.
_ZSTD_OPTIONS = zstandard.ZstdCompressionParameters.from_level(1, hash_log=6, min_match=7)

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # Pillow does not check it
_PNG_LEVEL = 3  # a third of the time of Pillow's own 6 for 4 % more bytes
_WEBP_QUALITY, _WEBP_METHOD = 50, 1  # more effort: up to 3 % fewer bytes in many times the time

# Numba takes a second to import and saves 1.4 ms per canvas of 336 px.
_NUM_BEFORE_NUMBA = 700
_num_added_up = itertools.count()


class Codec(NamedTuple):
    """One way to write a canvas.

    Attributes:
        name: Value of `--codec`.
        jpeg_quality: 1 to 100; None for all but `jpeg`.
        jpeg_subsampling: 4:4:4, 4:2:2 or 4:2:0; None for all but `jpeg`.
    """

    name: str = "raw"
    jpeg_quality: int | None = None
    jpeg_subsampling: str | None = None

    @property
    def canvas_suffix(self) -> str:
        """Suffix of the canvas; an image file has the usual suffix of its kind."""
        extension = EXTENSIONS[self.name]
        return extension if self.name in IMAGE_CODECS else f"canvas.{extension}"

    @property
    def resized_suffix(self) -> str:
        """Suffix of the candidates that are not windows of the canvas."""
        return f"resized.{EXTENSIONS[self.name]}"

    @property
    def is_raw(self) -> bool:
        """Whether pixels are stored as they are."""
        return self.name == "raw"

    @property
    def is_lossy(self) -> bool:
        """Whether decoding gives other pixels than were encoded."""
        return self.name == "jpeg"

    @property
    def typical_share(self) -> float:
        """Share of the raw bytes that photos seldom exceed."""
        return _SHARES[self.name]

    @property
    def library(self) -> str:
        """Libraries and versions that decide the bytes, for the manifest."""
        return {
            "raw": "",
            "zstd": f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}",
            "png": f"pillow {pillow_version}, {_zlib()}",
            "webp": f"pillow {pillow_version}, libwebp {features.version('webp')}",
            "jpeg": f"simplejpeg {version('simplejpeg')}",
        }[self.name]

    def encode(self, pixels: Pixels) -> Member:
        """Encode uint8 `(H, W, 3)`, RGB, or `(R, H, W, 3)`, stored one below the other."""
        if self.is_raw:
            return encode_array(pixels)
        pixels_HWC = pixels.reshape(-1, *pixels.shape[-2:])
        if self.name == "jpeg":
            return (_encode_jpeg(pixels_HWC, self.jpeg_quality, self.jpeg_subsampling),)
        return (_ENCODERS[self.name](pixels_HWC),)

    def decode(self, data: Data, shape: tuple[int, ...], where: str) -> Pixels:
        """Decode pixels of the given shape, read-only: raw ones are a view of the data.

        Raises:
            ValueError, VerificationError: If the data is no image of this size.
        """
        if self.is_raw:
            return decode_array(data, where)
        pixels = np.empty(shape, np.uint8)
        self.decode_into(data, pixels)
        pixels.flags.writeable = False
        return pixels

    def decode_into(self, data: Data, out: Pixels) -> None:
        """Decode into memory of the caller's; not for `raw`.

        Args:
            data: The bytes that `encode` gave.
            out: Uint8 `(H, W, 3)` or `(R, H, W, 3)` of the image's size, C order; RGB afterwards.

        Raises:
            ValueError: If the data is no image of this size.
        """
        _DECODERS[self.name](data, out.reshape(-1, *out.shape[-2:]))


def codec_of(spec: DataSpec) -> Codec:
    """Return the codec of a spec."""
    return Codec(spec.codec, spec.jpeg_quality, spec.jpeg_subsampling)


def _encode_zstd(pixels_HWC: Pixels) -> bytes:
    """Compress the deltas of green, red minus green and blue minus green, as a .npy.

    A delta is a pixel's difference from the pixel above, minus the same difference of its left
    neighbour; outside the image all pixels are zero. So two cumulative sums undo it.
    """
    height, width, _ = pixels_HWC.shape
    red, green, blue = pixels_HWC.transpose(2, 0, 1)
    planes = np.zeros((3, height + 1, width + 1), np.uint8)  # a zero above and left of each
    planes[0, 1:, 1:] = green
    np.subtract(red, green, out=planes[1, 1:, 1:])
    np.subtract(blue, green, out=planes[2, 1:, 1:])
    rows = planes[:, 1:] - planes[:, :-1]
    plain = np.empty(NPY_START + 3 * height * width, np.uint8)
    plain[:NPY_START] = np.frombuffer(npy_header((3, height, width)), np.uint8)
    deltas = plain[NPY_START:].reshape(3, height, width)
    np.subtract(rows[:, :, 1:], rows[:, :, :-1], out=deltas)
    return zstandard.ZstdCompressor(compression_params=_ZSTD_OPTIONS).compress(plain.data)


def _decode_zstd(data: Data, out_HWC: Pixels) -> None:
    height, width, _ = out_HWC.shape
    size = NPY_START + out_HWC.size
    try:
        if zstandard.frame_content_size(data) != size:
            raise ValueError(f"a zstd frame not of the {size} bytes of {width}x{height} px")
        # Whole frames: decoding as a stream copies from a window and takes twice the time.
        plain = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a zstd frame with an error ({error})") from error
    if not plain.startswith(npy_header((3, height, width))):
        raise ValueError(f"a zstd frame not of the deltas of {width}x{height} px")
    deltas = np.frombuffer(plain, np.uint8, offset=NPY_START).reshape(3, height, width)
    if next(_num_added_up) < _NUM_BEFORE_NUMBA and "pipeline.pixels.kernels" not in sys.modules:
        add_up(deltas, out_HWC)
    else:
        from pipeline.pixels import kernels

        kernels.add_up(deltas, out_HWC)


def add_up(deltas_3HW: Pixels, out_HWC: Pixels) -> None:
    """Undo the filter; `kernels.add_up` does the same in a twentieth of the time."""
    green, red, blue = deltas_3HW.cumsum(1, dtype=np.uint8).cumsum(2, dtype=np.uint8)
    out_HWC[..., 1] = green
    np.add(red, green, out=out_HWC[..., 0])
    np.add(blue, green, out=out_HWC[..., 2])


def _encode_png(pixels_HWC: Pixels) -> bytes:
    return _encode_pillow(pixels_HWC, "PNG", compress_level=_PNG_LEVEL)


def _encode_webp(pixels_HWC: Pixels) -> bytes:
    options = {"lossless": True, "quality": _WEBP_QUALITY, "method": _WEBP_METHOD}
    return _encode_pillow(pixels_HWC, "WEBP", **options)


def _encode_pillow(pixels_HWC: Pixels, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(buffer, kind, **options)
    return buffer.getvalue()


def _decode_png(data: Data, out_HWC: Pixels) -> None:
    is_png = bytes(data[:16]) == _PNG_START and bytes(data[-12:]) == _PNG_END
    if not is_png or bytes(data[24:26]) != b"\x08\x02":  # 8 bits, RGB
        raise ValueError("not a complete PNG of 8-bit RGB")
    width, height = struct.unpack(">II", data[16:24])
    _check_size(out_HWC, width=width, height=height)
    _decode_pillow(data, "PNG", out_HWC)


def _decode_webp(data: Data, out_HWC: Pixels) -> None:
    """Decode a simple lossless WebP; for other kinds Pillow allocates memory on opening."""
    start = bytes(data[:25])
    is_simple = len(start) == 25 and start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8L"
    if not is_simple or start[20] != 0x2F:
        raise ValueError("not a lossless WebP")
    sides = int.from_bytes(start[21:25], "little")
    _check_size(out_HWC, width=(sides & 0x3FFF) + 1, height=(sides >> 14 & 0x3FFF) + 1)
    _decode_pillow(data, "WEBP", out_HWC)


def _decode_pillow(data: Data, kind: str, out_HWC: Pixels) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            if image.mode != "RGB":
                raise ValueError(f"colour mode {image.mode}")
            _check_size(out_HWC, width=image.width, height=image.height)
            out_HWC[:] = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise errors of any type for a broken file
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _encode_jpeg(pixels_HWC: Pixels, quality: int | None, subsampling: str | None) -> bytes:
    if quality is None or subsampling is None:
        raise ValueError("a JPEG is encoded with a quality and a subsampling")
    pixels_HWC = np.ascontiguousarray(pixels_HWC)
    colours = subsampling.replace(":", "")
    encoded: bytes = simplejpeg.encode_jpeg(pixels_HWC, quality, "RGB", colours, fastdct=False)
    return encoded


def _decode_jpeg(data: Data, out_HWC: Pixels) -> None:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours != "YCbCr":
        raise ValueError(f"a JPEG in {colours}")
    _check_size(out_HWC, width=width, height=height)
    simplejpeg.decode_jpeg(data, "RGB", buffer=out_HWC)


def _check_size(out_HWC: Pixels, *, width: int, height: int) -> None:
    if (height, width) != out_HWC.shape[:2]:
        expected = f"{out_HWC.shape[1]}x{out_HWC.shape[0]} px"
        raise ValueError(f"an image of {width}x{height} px in place of {expected}")


def _zlib() -> str:
    zlib_ng = features.version_feature("zlib_ng")
    return f"zlib-ng {zlib_ng}" if zlib_ng else f"zlib {features.version('zlib')}"


_ENCODERS: dict[str, Callable[[Pixels], bytes]] = {
    "zstd": _encode_zstd,
    "png": _encode_png,
    "webp": _encode_webp,
}
_DECODERS: dict[str, Callable[[Data, Pixels], None]] = {
    "zstd": _decode_zstd,
    "png": _decode_png,
    "webp": _decode_webp,
    "jpeg": _decode_jpeg,
}
