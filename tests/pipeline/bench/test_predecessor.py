import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from specs import spec_of

from pipeline.decode.pillow import PillowDecoder
from pipeline.decode.rules import Views
from pipeline.format.cutting import original_crops, pad_glimpses
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels

torch = pytest.importorskip("torch", reason="the predecessor ran on torch, which is not in here")
pytest.importorskip("torchvision", reason="the predecessor ran on torchvision, which is not here")

SIZES = [(168, 112, 32), (97, 64, 33), (50, 50, 50)]


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """Give the other tests their threads back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def spec_for(sizes: tuple[int, int, int]) -> DataSpec:
    canvas_px, crop_px, glimpse_px = sizes
    return spec_of(canvas_px=canvas_px, crop_px=crop_px, glimpse_px=glimpse_px)


def our_views(data: bytes, spec: DataSpec) -> tuple[Pixels, Pixels]:
    """Originals `(5, 3, c, c)` and padded glimpses `(5, 1, c, c)` of our reference decoder."""
    views = PillowDecoder(spec).decode_one(data)
    assert isinstance(views, Views)
    crops = original_crops(
        views.canvas, views.resized, spec.crop_layout, range(len(spec.crop_layout))
    )
    return np.stack(crops), pad_glimpses(views.glimpses, spec.crop_size)


def assert_equal_views(data: bytes, sizes: tuple[int, int, int], torchvision_views: Any) -> None:
    from pipeline.bench.predecessor import make_transforms

    spec = spec_for(sizes)
    canvas_px, crop_px, glimpse_px = sizes
    found = make_transforms(spec)(data)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    theirs = torchvision_views(
        image, canvas_size=canvas_px, crop_size=crop_px, glimpse_size=glimpse_px
    )
    for views, channels, expected, ours in zip(
        found, (3, 1), theirs, our_views(data, spec), strict=True
    ):
        assert views.dtype == torch.float32
        assert views.shape == (5, channels, crop_px, crop_px)
        np.testing.assert_array_equal(views.numpy() * np.float32(255), expected)
        np.testing.assert_array_equal(expected, ours)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_predecessor_makes_what_we_make_of_drawn_jpegs(
    sizes: tuple[int, int, int], jpeg: Any, torchvision_views: Any
) -> None:
    for seed, (width, height) in enumerate([(300, 200), (90, 310), (50, 50), (7, 400)]):
        data = jpeg(seed, width=width, height=height, quality=70 + seed)
        assert_equal_views(data, sizes, torchvision_views)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_predecessor_makes_what_we_make_of_real_photos(
    sizes: tuple[int, int, int], real_jpegs: list[bytes], torchvision_views: Any
) -> None:
    for data in real_jpegs[:6]:
        assert_equal_views(data, sizes, torchvision_views)


def test_the_predecessor_runs_on_one_thread_as_every_contender_does() -> None:
    from pipeline.bench.predecessor import make_transforms

    torch.set_num_threads(2)
    make_transforms(spec_for(SIZES[0]))
    assert torch.get_num_threads() == 1
