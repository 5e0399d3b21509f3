import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.pixels import Pixels
from pipeline.pixels import resize as resize_module
from pipeline.pixels.resize import (
    SourceBox,
    gray,
    is_exact,
    resize,
    resize_boxes,
    resize_exactly,
)

needs_pillow = pytest.mark.skipif(
    not is_exact(), reason="the reference is Pillow >= 13; this environment has another"
)


def noise(height: int, width: int, *, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def in_pillow(image: Pixels, side: int) -> Pixels:
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@needs_pillow
@given(height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 90))
def test_every_size_is_resized_as_pillow_does_it_bit_for_bit(
    height: int, width: int, side: int
) -> None:
    image = noise(height, width, seed=height)
    np.testing.assert_array_equal(resize_exactly(image, side), in_pillow(image, side))


@needs_pillow
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    side=st.integers(1, 60),
    edges=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_every_box_is_resized_as_pillow_does_it_bit_for_bit(
    height: int, width: int, side: int, edges: list[float]
) -> None:
    image = noise(height, width, seed=height)
    (left, right), (upper, lower) = sorted(edges[:2]), sorted(edges[2:])
    box = (left * width, upper * height, right * width, lower * height)
    expected = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box)
    np.testing.assert_array_equal(resize_exactly(image, side, box), np.asarray(expected))


@needs_pillow
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (2000, 3), (3, 2000), (1200, 1600)])
def test_photos_of_many_shapes_are_resized_as_pillow_does_it(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    for side in (8, 224, 336):
        np.testing.assert_array_equal(resize(image, side), in_pillow(image, side))


def test_extremes_neither_overflow_nor_wrap() -> None:
    for value in (0, 255):
        flat = np.full((97, 61, 3), value, np.uint8)
        assert (resize_exactly(flat, 40) == value).all()
        assert (resize_exactly(flat, 130) == value).all()


def test_an_image_of_the_right_size_is_given_back_as_it_is() -> None:
    image = noise(20, 20)
    assert resize(image, 20) is image


def test_views_with_any_strides_are_read_and_left_alone() -> None:
    image = noise(50, 60)
    before = image.copy()
    views = [image[3:40, 5:41], image[::-1], image[:, ::2], image[..., ::-1]]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    views.append(planes.transpose(1, 2, 0))
    for view in views:
        expected = resize_exactly(np.ascontiguousarray(view), 24)
        np.testing.assert_array_equal(resize_exactly(view, 24), expected)
        np.testing.assert_array_equal(gray(view), gray(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(image, before)


@needs_pillow
def test_gray_is_pillows_luma_for_every_colour() -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
    np.testing.assert_array_equal(gray(colours), np.asarray(Image.fromarray(colours).convert("L")))


# Measured with pillow-simd 12.1.1: its 16-bit weights are one step off in 0.3 % of the values, and
# its pass order, that of Pillow before 13, in 24 % of a portrait's.
@pytest.mark.parametrize(
    ("height", "width", "mean"), [(224, 224, 0.002), (375, 500, 0.01), (500, 375, 0.3)]
)
def test_whatever_pillow_is_installed_is_at_most_one_step_off(
    height: int, width: int, mean: float, jpeg: Any
) -> None:
    image = np.asarray(Image.open(io.BytesIO(jpeg(1, width=width, height=height, quality=95))))
    for side in (64, 336):
        off = np.abs(resize(image, side).astype(int) - resize_exactly(image, side))
        assert off.max() <= (0 if is_exact() else 1)
        assert (off.mean(axis=(0, 1)) <= mean).all()


def test_a_pillow_with_other_pixels_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    in_its_memory = resize_module._in_pillow

    def take(image: Pixels) -> Image.Image:
        taken.append(image)
        return in_its_memory(image)

    def rounded(image: Image.Image, side: int, box: SourceBox | None) -> Pixels:
        return resize_exactly(np.asarray(image), side, box) ^ 1

    monkeypatch.setattr(resize_module, "_resize_in_pillow", rounded)
    is_exact.cache_clear()
    try:
        assert not is_exact()
        image = noise(30, 30)
        np.testing.assert_array_equal(resize(image, 12), resize_exactly(image, 12) ^ 1)
        monkeypatch.setattr(resize_module, "_in_pillow", take)
        assert len(resize_boxes(image, 12, [None, (0, 0, 10, 30), (10, 0, 20, 30)])) == 3
        assert resize_boxes(image, 12, []) == []
        assert len(taken) == 1  # once for all boxes, and not for none
    finally:
        monkeypatch.undo()
        is_exact.cache_clear()


@needs_pillow
def test_real_photos_are_resized_as_pillow_does_it(real_jpegs: list[bytes]) -> None:
    for data in real_jpegs:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for side in (32, 64, 168, 336):
            np.testing.assert_array_equal(resize(image, side), in_pillow(image, side))
