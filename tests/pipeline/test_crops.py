import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import crops
from pipeline.crops import Box, CropPlan, plan_crops
from pipeline.decode import PillowDecoder, Views, ViewSpec
from pipeline.errors import ConfigError
from pipeline.resample import Pixels

SIZES = [(336, 224, 64), (168, 112, 21), (97, 64, 33), (75, 60, 60), (50, 50, 1)]


def decode(data: bytes, plan: CropPlan) -> Views:
    spec = ViewSpec(plan=plan, glimpse_px=1, exif=True, max_pixels=10**8)
    (views,) = PillowDecoder(spec).decode([data])
    assert isinstance(views, Views)
    return views


def cut(canvas: Pixels, plan: CropPlan, *, glimpse_px: int) -> tuple[Pixels, Pixels]:
    """Originals `(K, 3, c, c)` and padded glimpses `(K, 1, c, c)`."""
    resized = crops.resized_crops(canvas, plan)
    views = crops.original_crops(canvas, resized, plan, range(len(plan)))
    small = crops.glimpses(views, glimpse_px)
    return np.stack(views), crops.pad_glimpses(small, plan.crop_px)


def assert_equal_to_torchvision(data: bytes, reference: Any, sizes: tuple[int, int, int]) -> None:
    canvas_px, crop_px, glimpse_px = sizes
    image = Image.open(io.BytesIO(data)).convert("RGB")
    expected = reference(image, canvas_size=canvas_px, crop_size=crop_px, glimpse_size=glimpse_px)
    plan = plan_crops("five", canvas_px=canvas_px, crop_px=crop_px)
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
    plan = plan_crops("five", canvas_px=canvas_px, crop_px=crop_px)
    expected = torchvision_views(
        Image.fromarray(canvas), canvas_size=canvas_px, crop_size=crop_px, glimpse_size=glimpse_px
    )
    for ours, theirs in zip(cut(canvas, plan, glimpse_px=glimpse_px), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_whole_image_comes_first_and_is_the_canvas_resized_to_the_crop(jpeg: Any) -> None:
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="the reference is torchvision, which is not in here"
    )
    whole_and_five = plan_crops("full+five", canvas_px=168, crop_px=112)
    canvas = decode(jpeg(1, width=300, height=200), whole_and_five).canvas
    originals, _ = cut(canvas, whole_and_five, glimpse_px=32)
    five, _ = cut(canvas, plan_crops("five", canvas_px=168, crop_px=112), glimpse_px=32)
    whole = np.asarray(transforms.Resize((112, 112))(Image.fromarray(canvas)))
    np.testing.assert_array_equal(originals[0], whole.transpose(2, 0, 1))
    np.testing.assert_array_equal(originals[1:], five)
    assert whole_and_five.names[0] == "full"


def test_the_five_boxes_are_the_corners_and_the_centre_in_torchvisions_order() -> None:
    plan = plan_crops("five", canvas_px=336, crop_px=224)
    assert plan.names == ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
    assert plan.boxes == (
        Box(0, 0, 224, 224),
        Box(112, 0, 336, 224),
        Box(0, 112, 224, 336),
        Box(112, 112, 336, 336),
        Box(56, 56, 280, 280),
    )
    assert plan.normalised()[4] == (56 / 336, 56 / 336, 280 / 336, 280 / 336)


def test_glimpses_are_padded_with_zeros_right_and_below() -> None:
    padded = crops.pad_glimpses(np.full((2, 1, 3, 3), 9, np.uint8), 5)
    assert padded.shape == (2, 1, 5, 5)
    assert (padded[:, :, :3, :3] == 9).all()
    assert padded.sum() == 2 * 9 * 9


def test_plain_crops_share_memory_with_the_canvas() -> None:
    canvas = np.zeros((10, 10, 3), np.uint8)
    plan = plan_crops("five", canvas_px=10, crop_px=6)
    views = crops.original_crops(canvas, crops.resized_crops(canvas, plan), plan, range(5))
    assert all(np.shares_memory(view, canvas) for view in views)
    assert plan.resized == ()


def test_a_smaller_set_is_found_in_a_larger_one() -> None:
    plan = plan_crops("full+five", canvas_px=10, crop_px=6)
    assert plan.indices("five") == (1, 2, 3, 4, 5)
    assert plan.indices("full+five") == (0, 1, 2, 3, 4, 5)
    assert plan.indices("centre,full") == (5, 0)
    assert plan.resized == (0,)


def test_a_set_that_the_shards_lack_is_refused_with_the_command_that_makes_it() -> None:
    plan = plan_crops("five", canvas_px=10, crop_px=6)
    with pytest.raises(ConfigError, match=r"build shards with --candidates full\+five"):
        plan.indices("full+five")


def test_a_crop_larger_than_the_canvas_is_refused_by_its_option() -> None:
    with pytest.raises(ConfigError, match=r"--crop-size 11 px for --canvas-size 10 px\. Lower"):
        plan_crops("five", canvas_px=10, crop_px=11)


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"one of five, full\+five; got 'six'"):
        plan_crops("six", canvas_px=10, crop_px=5)
