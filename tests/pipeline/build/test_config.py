from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from pipeline.build.config import BuildConfig
from pipeline.common.errors import ConfigError
from pipeline.datasets.config import SceneConfig


def make(**options: Any) -> BuildConfig:
    return BuildConfig(source=Path("in"), out=Path("out"), **options)


def test_the_defaults_are_the_predecessors_sizes_and_its_later_crops() -> None:
    config = make()
    assert (config.canvas_size, config.crop_size, config.glimpse_size) == (336, 224, 64)
    assert config.candidates == "full+five"  # which the default policy of training needs
    assert config.max_rejects == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("canvas_size", 0),
        ("crop_size", -1),
        ("glimpse_size", 0),
        ("max_pixels", 0),
        ("shard_mib", 0),
        ("workers", 0),
        ("limit", 0),
        ("max_rejects", -1),
        ("seed", -1),
    ],
)
def test_a_number_below_its_floor_is_refused_by_its_option(option: str, value: int) -> None:
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"^{name} must be at least \d; got {value}\.$"):
        make(**{option: value})


@pytest.mark.parametrize("option", ["candidates", "layout", "codec", "jpeg_subsampling", "decoder"])
def test_an_unknown_name_is_refused_with_the_known_ones(option: str) -> None:
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"^{name} must be one of .+; got 'other'\.$"):
        make(**{option: "other"})


def test_a_crop_larger_than_the_canvas_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--crop-size 400 px for --canvas-size 336 px\. Lower"):
        make(crop_size=400)


def test_a_glimpse_larger_than_the_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--glimpse-size 225 px for --crop-size 224 px\. Lower"):
        make(glimpse_size=225)


@pytest.mark.parametrize("codec", ["zstd", "png", "webp", "jpeg"])
def test_the_tensors_layout_is_raw(codec: str) -> None:
    make(codec=codec)
    make(layout="tensors", codec="raw")
    with pytest.raises(ConfigError, match=rf"got --codec {codec}\. Drop --codec {codec}, or use"):
        make(layout="tensors", codec=codec)


@pytest.mark.parametrize(("option", "value"), [("jpeg_quality", 90), ("jpeg_subsampling", "4:2:0")])
def test_options_of_the_jpeg_codec_are_refused_where_they_would_do_nothing(
    option: str, value: object
) -> None:
    make(codec="jpeg", **{option: value})
    name = f"--{option.replace('_', '-')}"
    for codec in ("raw", "zstd"):
        with pytest.raises(
            ConfigError, match=rf"^{name} needs --codec jpeg; got {value} with --codec {codec}\. "
        ):
            make(codec=codec, **{option: value})


@pytest.mark.parametrize(
    ("quality", "rule"), [(0, "at least 1"), (-1, "at least 1"), (101, "at most 100")]
)
def test_a_jpeg_quality_is_1_to_100(quality: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--jpeg-quality must be {rule}; got {quality}\.$"):
        make(codec="jpeg", jpeg_quality=quality)


def test_sizes_may_be_equal() -> None:
    make(canvas_size=8, crop_size=8, glimpse_size=8)


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        make().seed = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        SceneConfig(out=Path("out")).seed = 1  # type: ignore[misc]
