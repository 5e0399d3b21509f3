import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow_version
from specs import decoded, spec_of

from pipeline.common.errors import ImageError
from pipeline.decode.pillow import PillowDecoder
from pipeline.decode.rules import Views, opened, own_process

SIDE = 8


def decode(
    data: bytes,
    *,
    exif: bool = True,
    max_pixels: int = 10**6,
    draft: bool = False,
    canvas_px: int = SIDE,
) -> Views:
    options = {"exif": exif, "max_pixels": max_pixels, "draft": draft}
    spec = spec_of(canvas_px=canvas_px, crop_px=canvas_px, **options)
    with own_process():
        views = PillowDecoder(spec).decode_one(data)
    if isinstance(views, ImageError):
        raise views
    return views


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (SIDE, SIDE, *shape), dtype)


def test_a_canvas_is_one_antialiased_bilinear_resize_and_the_aspect_is_not_kept(jpeg: Any) -> None:
    data = jpeg(1, width=50, height=20)
    expected = Image.open(io.BytesIO(data)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    decoded = decode(data)
    np.testing.assert_array_equal(decoded.canvas, np.asarray(expected))
    assert (decoded.width, decoded.height) == (50, 20)
    assert decoded.canvas.dtype == np.uint8


def test_gray_becomes_three_equal_channels() -> None:
    gray = noise()
    decoded = decode(encode(Image.fromarray(gray)))
    for channel in range(3):
        np.testing.assert_array_equal(decoded.canvas[:, :, channel], gray)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_keeps_its_high_byte(kind: str) -> None:
    deep = noise(dtype=np.uint16)
    decoded = decode(encode(Image.fromarray(deep), kind))
    for channel in range(3):
        np.testing.assert_array_equal(decoded.canvas[:, :, channel], deep >> 8)


def test_float_images_are_refused() -> None:
    with pytest.raises(ImageError, match="float images have no documented range"):
        decode(encode(Image.fromarray(noise().astype(np.float32)), "TIFF"))


def test_cmyk_becomes_rgb_by_pillows_conversion(jpeg: Any) -> None:
    image = Image.open(io.BytesIO(jpeg(2))).convert("CMYK")
    data = encode(image, "JPEG")
    stored = Image.open(io.BytesIO(data))
    assert stored.mode == "CMYK"
    expected = stored.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(data).canvas, np.asarray(expected))


def test_alpha_is_dropped_and_the_colours_under_it_stay() -> None:
    pixels = noise(4)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels))).canvas, pixels[..., :3])


def test_a_palette_with_transparency_gives_its_colours_and_no_warning() -> None:
    image = Image.fromarray(noise()).convert("P")
    data = encode(image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode(data).canvas, np.asarray(image.convert("RGB")))


def test_exif_orientation_is_applied_unless_switched_off() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(image, "JPEG", exif=exif)
        stored = Image.open(io.BytesIO(data))
        upright = ImageOps.exif_transpose(stored)
        on, off = decode(data), decode(data, exif=False)
        small = upright.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(on.canvas, np.asarray(small))
        assert (on.width, on.height) == ((30, 60) if orientation >= 5 else (60, 30))
        small = stored.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(off.canvas, np.asarray(small))
        assert (off.width, off.height) == (60, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("exif", [True, False])
def test_width_and_height_are_those_of_the_picture_that_was_resized(kind: str, exif: bool) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encode(Image.new("RGB", (60, 30)), kind, exif=turned)
    views = decode(data, exif=exif)
    is_upright = exif or kind == "TIFF"  # Pillow turns a TIFF when it opens it
    assert (views.width, views.height) == ((30, 60) if is_upright else (60, 30))


def test_a_fault_of_ours_is_no_rejection(jpeg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug in the resize")

    monkeypatch.setattr("pipeline.decode.rules.resize", fail)
    with pytest.raises(ValueError, match="a bug in the resize"):
        decode(jpeg(1))


def test_damaged_exif_spoils_neither_the_pixels_nor_the_terminal(jpeg: Any) -> None:
    cut_short = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    plain = decode(jpeg(3)).canvas
    for exif in (cut_short, b"Exif\0\0no such thing"):
        np.testing.assert_array_equal(decode(jpeg(3, exif=exif)).canvas, plain)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue], **lossless)
    assert (decode(data).canvas == (255, 0, 0)).all()


def test_a_bomb_is_refused_before_a_pixel_is_allocated() -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    data += chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(ImageError, match=r"^100000x100000 px is more than --max-pixels 1000000$"):
        decode(data)


def test_pillows_guard_is_the_processs_own_but_where_it_is_ours(jpeg: Any) -> None:
    guard, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    assert guard
    decode(jpeg(4))
    assert guard == Image.MAX_IMAGE_PIXELS
    decoder = PillowDecoder(spec_of(canvas_px=8, crop_px=8, max_pixels=10**9))
    assert guard == Image.MAX_IMAGE_PIXELS
    decoded(decoder, [jpeg(4)])
    assert guard == Image.MAX_IMAGE_PIXELS
    with contextlib.suppress(ZeroDivisionError), own_process():
        assert Image.MAX_IMAGE_PIXELS is None
        raise ZeroDivisionError
    assert guard == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_threads_that_open_images_leave_the_filters_of_warnings_alone(jpeg: Any) -> None:
    filters = list(warnings.filters)
    first, second = (opened(jpeg(4), max_pixels=10**6) for _ in range(2))
    first.__enter__()
    second.__enter__()
    assert list(warnings.filters) == filters
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert list(warnings.filters) == filters


def test_the_cap_on_pixels_is_inclusive(jpeg: Any) -> None:
    data = jpeg(4, width=60, height=40)
    decode(data, max_pixels=2400)
    with pytest.raises(ImageError, match="60x40 px is more than --max-pixels 2399"):
        decode(data, max_pixels=2399)


def test_what_is_no_image_is_refused_with_a_reason(jpeg: Any) -> None:
    with pytest.raises(ImageError, match=r"^not an image of a known format$"):
        decode(b"just some text\n" * 10)
    with pytest.raises(ImageError, match=r"^empty file$"):
        decode(b"")
    with pytest.raises(ImageError, match="truncated"):
        decode(jpeg(5)[:-200])


def test_formats_whose_decoders_start_programs_are_not_tried() -> None:
    with pytest.raises(ImageError, match=r"^not an image of a known format$"):
        decode(encode(Image.new("RGB", (8, 8)), "EPS"))


@given(cut=st.floats(0, 1), flip=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_broken_file_is_an_image_error_or_an_image_and_nothing_else(
    cut: float, flip: float, bit: int, jpeg: Any
) -> None:
    data = bytearray(jpeg(6))
    data[int(flip * len(data))] ^= 1 << bit
    try:
        canvas = decode(bytes(data[: round(cut * len(data))])).canvas
    except ImageError as error:
        reason = str(error)
        assert reason
        assert "\n" not in reason
        assert " at 0x" not in reason
    else:
        assert canvas.shape == (SIDE, SIDE, 3)


def in_plain_pillow(data: bytes) -> np.ndarray | None:
    """Decode as torchvision's loader would; None where Pillow refuses."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    except Exception:
        return None


@given(
    cut=st.floats(0.3, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
    progressive=st.booleans(),
)
def test_of_a_damaged_jpeg_the_fast_way_sees_what_pillow_sees(
    cut: float, flips: list[tuple[float, int]], progressive: bool, jpeg: Any
) -> None:
    data = bytearray(jpeg(7, progressive=progressive, quality=90))
    for where, bit in flips:
        data[int(where * len(data))] ^= 1 << bit
    damaged = bytes(data[: round(cut * len(data))])
    expected = in_plain_pillow(damaged)
    try:
        canvas = decode(damaged).canvas
    except ImageError:
        assert expected is None
    else:
        assert expected is not None
        np.testing.assert_array_equal(canvas, expected)


def test_the_first_picture_of_a_cameras_mpo_counts() -> None:
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ((254, 0, 0), (0, 0, 254)))
    data = encode(red, "MPO", save_all=True, append_images=[blue])
    assert (decode(data).canvas == (254, 0, 0)).all()


def test_the_decoders_name_tells_which_libraries_decide_the_pixels() -> None:
    spec = spec_of(canvas_px=8, crop_px=8, max_pixels=1)
    name = PillowDecoder(spec).library
    simd = "-simd" if ".post" in pillow_version else ""
    assert name.startswith(f"pillow{simd} {pillow_version}, libjpeg")
    assert name.endswith(f", simplejpeg {version('simplejpeg')}")
    assert PillowDecoder(replace(spec, draft=True)).library == name
