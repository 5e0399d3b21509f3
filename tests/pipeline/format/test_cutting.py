import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from specs import spec_of

from pipeline.decode.pillow import PillowDecoder
from pipeline.decode.rules import Views
from pipeline.format import cutting
from pipeline.format.crops import CANDIDATE_SETS, Box, CropLayout, place_crops
from pipeline.pixels import Pixels

SIZES = [(336, 224, 64), (168, 112, 21), (97, 64, 33), (75, 60, 60), (50, 50, 1)]


def decode(data: bytes, plan: CropLayout, candidates: str = "five") -> Views:
    spec = spec_of(candidates, canvas_px=plan.canvas_px, crop_px=plan.crop_px)
    views = PillowDecoder(spec).decode_one(data)
    assert isinstance(views, Views)
    return views


def cut(canvas: Pixels, plan: CropLayout, *, glimpse_px: int) -> tuple[Pixels, Pixels]:
    """Originals `(K, 3, c, c)` and padded glimpses `(K, 1, c, c)`."""
    resized = cutting.resized_crops(canvas, plan)
    views = cutting.original_crops(canvas, resized, plan, range(len(plan)))
    small = cutting.glimpses(views, glimpse_px)
    return np.stack(views), cutting.pad_glimpses(small, plan.crop_px)


def assert_equal_to_torchvision(data: bytes, reference: Any, sizes: tuple[int, int, int]) -> None:
    canvas_px, crop_px, glimpse_px = sizes
    image = Image.open(io.BytesIO(data)).convert("RGB")
    expected = reference(image, canvas_size=canvas_px, crop_size=crop_px, glimpse_size=glimpse_px)
    plan = place_crops("five", canvas_px=canvas_px, crop_px=crop_px)
    got = cut(decode(data, plan).canvas, plan, glimpse_px=glimpse_px)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.uint8


@pytest.mark.parametrize("sizes", SIZES)
def test_crops_and_glimpses_of_drawn_jpegs_equal_torchvisions_bit_for_bit(
    sizes: tuple[int, int, int], jpeg: Any, torchvision_views: Any
) -> None:
    for seed, (width, height) in enumerate([(500, 333), (60, 200), (sizes[0], sizes[0]), (3, 2)]):
        data = jpeg(seed, width=width, height=height)
        assert_equal_to_torchvision(data, torchvision_views, sizes)


@pytest.mark.parametrize("sizes", SIZES[:2])
def test_crops_and_glimpses_of_real_photos_equal_torchvisions_bit_for_bit(
    sizes: tuple[int, int, int], real_jpegs: list[bytes], torchvision_views: Any
) -> None:
    for data in real_jpegs:
        assert_equal_to_torchvision(data, torchvision_views, sizes)


@given(data=st.data(), canvas_px=st.integers(1, 60))
def test_every_size_gives_torchvisions_five_crops(
    data: st.DataObject, canvas_px: int, torchvision_views: Any
) -> None:
    crop_px = data.draw(st.integers(1, canvas_px))
    glimpse_px = data.draw(st.integers(1, crop_px))
    canvas = np.random.default_rng(canvas_px).integers(0, 256, (canvas_px, canvas_px, 3), np.uint8)
    plan = place_crops("five", canvas_px=canvas_px, crop_px=crop_px)
    expected = torchvision_views(
        Image.fromarray(canvas), canvas_size=canvas_px, crop_size=crop_px, glimpse_size=glimpse_px
    )
    for ours, theirs in zip(cut(canvas, plan, glimpse_px=glimpse_px), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_whole_image_comes_first_and_the_others_stay_what_they_were(jpeg: Any) -> None:
    whole_and_five = place_crops("full+five", canvas_px=168, crop_px=112)
    assert whole_and_five.names[0] == "full"
    canvas = decode(jpeg(1, width=300, height=200), whole_and_five).canvas
    originals, _ = cut(canvas, whole_and_five, glimpse_px=32)
    five, _ = cut(canvas, place_crops("five", canvas_px=168, crop_px=112), glimpse_px=32)
    np.testing.assert_array_equal(originals[1:], five)


def assert_resized_once(data: bytes, sizes: tuple[int, int, int]) -> None:
    """Compare every resized candidate with torchvision's and Pillow's of the image itself."""
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="the reference is torchvision, which is not in here"
    )
    canvas_px, crop_px, _ = sizes
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    plan = place_crops("full+strips", canvas_px=canvas_px, crop_px=crop_px)
    resized = dict(zip(plan.names, decode(data, plan, "full+strips").resized, strict=True))
    whole = np.asarray(transforms.Resize((crop_px, crop_px))(image))
    np.testing.assert_array_equal(resized["full"], whole.transpose(2, 0, 1))
    for name, box in zip(plan.names, plan.boxes, strict=True):
        sides = (image.width, image.height) * 2
        place = tuple(edge * side / canvas_px for edge, side in zip(box, sides, strict=True))
        part = image.resize((crop_px, crop_px), Image.Resampling.BILINEAR, place)
        np.testing.assert_array_equal(resized[name], np.asarray(part).transpose(2, 0, 1))


@pytest.mark.parametrize("sizes", SIZES[:4])
def test_what_is_resized_comes_from_the_image_itself_bit_for_bit(
    sizes: tuple[int, int, int], jpeg: Any
) -> None:
    for seed, (width, height) in enumerate([(500, 333), (60, 200), (97, 900), (3, 2), (1, 1)]):
        data = jpeg(seed, width=width, height=height)
        assert_resized_once(data, sizes)
        png, turned = io.BytesIO(), io.BytesIO()
        picture = Image.open(io.BytesIO(data))
        picture.save(png, "PNG")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        picture.save(turned, "JPEG", exif=exif)
        assert_resized_once(png.getvalue(), sizes)
        assert_resized_once(turned.getvalue(), sizes)


def test_what_is_resized_of_real_photos_comes_from_the_photos_themselves(
    real_jpegs: list[bytes],
) -> None:
    for data in real_jpegs:
        assert_resized_once(data, SIZES[0])


def test_strips_are_the_thirds_of_both_axes_resized_to_the_crop() -> None:
    plan = place_crops("strips", canvas_px=100, crop_px=60)
    left, middle, right, upper, level, lower = plan.boxes
    assert (left, middle, right) == (Box(0, 0, 33, 100), Box(33, 0, 67, 100), Box(67, 0, 100, 100))
    assert (upper, level, lower) == (Box(0, 0, 100, 33), Box(0, 33, 100, 67), Box(0, 67, 100, 100))
    assert plan.resized == tuple(range(6))
    source = np.random.default_rng(0).integers(0, 256, (90, 250, 3), np.uint8)
    resized = cutting.resized_crops(source, plan)
    places = [(0, 0, 82.5, 90), (82.5, 0, 167.5, 90), (167.5, 0, 250, 90)]
    places += [(0, 0, 250, 29.7), (0, 29.7, 250, 60.3), (0, 60.3, 250, 90)]
    for place, crop_CHW in zip(places, resized, strict=True):
        picture = Image.fromarray(source).resize((60, 60), Image.Resampling.BILINEAR, place)
        np.testing.assert_array_equal(crop_CHW, np.asarray(picture).transpose(2, 0, 1))


@given(
    candidates=st.sampled_from(CANDIDATE_SETS),
    canvas_px=st.integers(3, 60),
    data=st.data(),
)
def test_every_candidate_lies_on_the_canvas_and_has_a_name_of_its_own(
    candidates: str, canvas_px: int, data: st.DataObject
) -> None:
    crop_px = data.draw(st.integers(1, canvas_px))
    plan = place_crops(candidates, canvas_px=canvas_px, crop_px=crop_px)
    assert len(set(plan.names)) == len(plan.names) == len(plan.boxes)
    assert ("full" in plan.names[:1]) == candidates.startswith("full+")
    for box in plan.boxes:
        assert 0 <= box.x0 < box.x1 <= canvas_px
        assert 0 <= box.y0 < box.y1 <= canvas_px
    canvas = np.random.default_rng(0).integers(0, 256, (canvas_px, canvas_px, 3), np.uint8)
    originals, _ = cut(canvas, plan, glimpse_px=crop_px)
    small = cutting.canvas_glimpses(canvas, cutting.resized_crops(canvas, plan), plan, crop_px)
    assert originals.shape == (len(plan), 3, crop_px, crop_px)
    np.testing.assert_array_equal(small, cutting.glimpses(list(originals), crop_px))


def test_glimpses_are_padded_with_zeros_right_and_below() -> None:
    padded = cutting.pad_glimpses(np.full((2, 1, 3, 3), 9, np.uint8), 5)
    assert padded.shape == (2, 1, 5, 5)
    assert (padded[:, :, :3, :3] == 9).all()
    assert padded.sum() == 2 * 9 * 9


def test_plain_crops_share_memory_with_the_canvas() -> None:
    canvas = np.zeros((10, 10, 3), np.uint8)
    plan = place_crops("five", canvas_px=10, crop_px=6)
    views = cutting.original_crops(canvas, cutting.resized_crops(canvas, plan), plan, range(5))
    assert all(np.shares_memory(view, canvas) for view in views)
    assert plan.resized == ()
