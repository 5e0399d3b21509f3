import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specs import spec_of

from pipeline.common.errors import ImageError
from pipeline.decode.pillow import DRAFT_CANVASES, PillowDecoder
from pipeline.decode.rules import Views
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels

CANVAS_PX = 168
# libjpeg halves a photo if what is left is still DRAFT_CANVASES canvases wide and high.
HALVED_PX = 2 * DRAFT_CANVASES * CANVAS_PX

EXACT = spec_of("full+five", canvas_px=CANVAS_PX, crop_px=112, glimpse_px=32, max_pixels=2 * 10**7)
DRAFT = replace(EXACT, draft=True)


class Off(NamedTuple):
    """How far a draft may be from the exact views, in the 256 steps of a channel."""

    mean: float
    p999: float
    largest: int


# Behind each line what was measured with libjpeg-turbo 3.2, in the worst image of each set.
# Smooth colours with noise of 20 steps either way, in all shapes and kinds below.
GRAIN = {
    "canvas": Off(0.75, 3, 5),  # 0.674, 3, 4
    "resized": Off(0.5, 2, 5),  # 0.447, 2, 3
    "glimpses": Off(0.33, 2, 3),  # 0.300, 2, 2
}
# Plain rectangles on gray: a draft blends hard edges with other weights.
EDGES = {
    "canvas": Off(0.7, 10, 20),  # 0.614, 8, 17
    "resized": Off(0.9, 9, 12),  # 0.843, 8, 10
    "glimpses": Off(0.15, 1, 4),  # 0.130, 1, 3
}
# Twelve photos of 224 px side by side, as if they were one.
PHOTOS = {
    "canvas": Off(0.6, 5, 8),  # 0.532, 4, 6
    "resized": Off(0.4, 5, 6),  # 0.350, 4, 5
    "glimpses": Off(0.16, 1, 2),  # 0.142, 1, 2
}

Draw = Callable[..., bytes]


def decode(data: bytes, spec: DataSpec) -> Views:
    views = PillowDecoder(spec).decode_one(data)
    if isinstance(views, ImageError):
        raise views
    return views


def off(data: bytes, name: str) -> npt.NDArray[np.int64]:
    """Give the absolute differences between a draft's views and the exact ones."""
    pixels: list[Pixels] = [getattr(decode(data, spec), name) for spec in (DRAFT, EXACT)]
    steps: npt.NDArray[np.int64] = np.subtract(*pixels, dtype=np.int64)
    return np.abs(steps)


def assert_untouched(data: bytes) -> None:
    for name in GRAIN:
        assert not off(data, name).any()


def assert_near_but_shrunk(data: bytes, bounds: dict[str, Off]) -> None:
    assert off(data, "canvas").any()
    for name, bound in bounds.items():
        steps = off(data, name)
        figures = Off(steps.mean(), np.percentile(steps, 99.9), steps.max())
        assert all(f <= b for f, b in zip(figures, bound, strict=True)), (name, figures)


def encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.quick(every=4)
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 90, "subsampling": "4:4:4"},
        {"quality": 75, "progressive": True},
    ],
)
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (1600, 1200),
        (1200, 1600),
        (HALVED_PX, HALVED_PX),
        (HALVED_PX + 1, 800),
        (2 * HALVED_PX, 1351),
    ],
)
def test_a_large_photos_draft_is_near_its_exact_views(
    width: int, height: int, options: dict[str, Any], jpeg: Draw
) -> None:
    data = jpeg(1, width=width, height=height, **options)
    assert_near_but_shrunk(data, GRAIN)
    draft = decode(data, DRAFT)
    assert (draft.width, draft.height) == (width, height)


@pytest.mark.quick("1600-1200-4:4:4", "1344-1344-4:2:0")
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize(("width", "height"), [(HALVED_PX, HALVED_PX), (1600, 1200), (3000, 4000)])
def test_hard_edges_stay_near_too(width: int, height: int, subsampling: str) -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 128, np.uint8)
    for _ in range(400):
        left, top = rng.integers(0, width), rng.integers(0, height)
        across, down = rng.integers(2, width // 6), rng.integers(2, height // 6)
        pixels[top : top + down, left : left + across] = rng.integers(0, 256, 3)
    image = Image.fromarray(pixels)
    assert_near_but_shrunk(encode(image, quality=92, subsampling=subsampling), EDGES)


def test_real_photos_stay_near_too(real_jpegs: list[bytes]) -> None:
    photos = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in real_jpegs]
    rows = [np.concatenate(photos[start : start + 4], axis=1) for start in (0, 4, 8)]
    mosaic = Image.fromarray(np.concatenate(rows))
    assert mosaic.size == (896, HALVED_PX)
    assert_near_but_shrunk(encode(mosaic, quality=92), PHOTOS)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_photos_are_drafted_too(mode: str, jpeg: Draw) -> None:
    image = Image.open(io.BytesIO(jpeg(2, width=800, height=700))).convert(mode)
    assert_near_but_shrunk(encode(image), GRAIN)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_on_their_side_are_drafted_and_turned(orientation: int, jpeg: Draw) -> None:
    data = jpeg(3, width=800, height=700, exif=exif_bytes(orientation))
    assert_near_but_shrunk(data, GRAIN)
    draft = decode(data, DRAFT)
    assert (draft.width, draft.height) == ((700, 800) if orientation >= 5 else (800, 700))


@given(
    seed=st.integers(0, 99),
    short=st.integers(1, HALVED_PX - 1),
    other=st.integers(1, HALVED_PX + 100),
    on_side=st.booleans(),
)
def test_a_photo_that_is_small_in_any_side_is_decoded_exactly(
    seed: int, short: int, other: int, on_side: bool, jpeg: Draw
) -> None:
    width, height = (short, other) if on_side else (other, short)
    assert_untouched(jpeg(seed, width=width, height=height))


def test_other_formats_are_decoded_exactly(jpeg: Draw) -> None:
    for kind in ("PNG", "BMP"):
        assert_untouched(jpeg(4, width=HALVED_PX, height=800, kind=kind))


def test_a_cut_photo_is_refused_by_the_same_reason(jpeg: Draw) -> None:
    data = jpeg(5, width=1000, height=800)[:-5000]
    reasons = [str(PillowDecoder(spec).decode_one(data)) for spec in (DRAFT, EXACT)]
    assert reasons[0].startswith("OSError: image file is truncated")
    assert reasons[0] == reasons[1]


def test_the_cap_on_pixels_is_that_of_the_source(jpeg: Draw) -> None:
    spec = replace(DRAFT, max_pixels=1000 * 800 - 1)
    with pytest.raises(ImageError, match="1000x800 px is more than --max-pixels 799999"):
        decode(jpeg(6, width=1000, height=800), spec)
