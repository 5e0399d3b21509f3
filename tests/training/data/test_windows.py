import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from training.data.windows import draw_windows, grown_side, input_sides, resample

RATIO = (3 / 4, 4 / 3)


def drawn(num_samples: int, seed: int, *, scale: tuple[float, float] = (0.2, 1.0)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_windows(num_samples, scale=scale, ratio=RATIO, generator=generator)


def test_windows_lie_in_the_canvas_with_the_areas_and_ratios_asked_for() -> None:
    boxes = drawn(20_000, 1).double()
    x0, y0, x1, y1 = boxes.unbind(1)
    areas, ratios = (x1 - x0) * (y1 - y0), (x1 - x0) / (y1 - y0)
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    assert (areas.min().item(), areas.max().item()) == pytest.approx((0.2, 1.0), abs=1e-3)
    assert areas.mean().item() == pytest.approx(0.6, abs=0.01)
    assert ratios.min().item() == pytest.approx(RATIO[0], rel=0.01)
    assert ratios.max().item() == pytest.approx(RATIO[1], rel=0.01)
    assert ratios.log().mean().item() == pytest.approx(0, abs=0.01)
    middles = torch.stack([x0 + x1, y0 + y1]) / 2
    assert middles.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_a_window_of_all_is_all_and_seeds_decide_the_others() -> None:
    whole = drawn(5, 1, scale=(1.0, 1.0))
    torch.testing.assert_close(whole, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(5, 4))
    assert torch.equal(drawn(9, 1), drawn(9, 1))
    assert not torch.equal(drawn(9, 1), drawn(9, 2))


@settings(deadline=None, max_examples=60)
@given(
    canvas=st.integers(8, 48),
    side=st.integers(4, 40),
    seed=st.integers(0, 99),
    turns=st.tuples(st.booleans(), st.booleans()),
    least=st.floats(0.05, 1.0),
)
def test_a_window_is_what_pillow_makes_of_the_box(
    canvas: int, side: int, seed: int, turns: tuple[bool, bool], least: float
) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (2, canvas, canvas, 3), dtype=np.uint8)
    boxes_B4 = drawn(2, seed, scale=(least, 1.0)).clamp(0, 1)
    turns_B2 = torch.tensor([turns, turns])
    found = resample(torch.from_numpy(pictures), boxes_B4, turns_B2, side)
    assert found.shape == (2, side, side, 3)
    assert found.is_contiguous()
    for picture, box, small in zip(pictures, boxes_B4, found, strict=True):
        edges = tuple((box.double() * canvas).tolist())
        resized = Image.fromarray(picture).resize(
            (side, side), Image.Resampling.BILINEAR, box=edges
        )
        wanted = np.asarray(resized).astype(float)
        wanted = wanted[:: -1 if turns[0] else 1, :: -1 if turns[1] else 1]
        assert np.abs(small.numpy() - wanted).max() <= 1.51  # Pillow rounds twice to whole levels


def test_the_whole_picture_at_its_own_size_stays_as_it_is() -> None:
    pictures = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    whole_B4 = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)
    turns_B2 = torch.tensor([[False, False], [True, False], [False, True]])
    found = resample(pictures, whole_B4, turns_B2, 16)
    turned = torch.stack([pictures[0], pictures[1].flip(0), pictures[2].flip(1)])
    assert torch.equal(found, turned.float())


@given(start=st.integers(8, 200), more=st.integers(1, 100))
def test_a_growing_input_takes_multiples_of_8_and_ends_at_the_crop(start: int, more: int) -> None:
    crop_px = start + more
    sides = input_sides(start, crop_px)
    assert sides[0] == start // 8 * 8
    assert sides[-1] == crop_px
    assert all(side % 8 == 0 for side in sides[:-1])
    assert list(sides) == sorted(set(sides))
    grown = [grown_side(start, crop_px, part / 1000) for part in range(1200)]
    assert grown == sorted(grown)
    assert tuple(dict.fromkeys(grown)) == sides
    assert set(grown[1000:]) == {crop_px}
    shares = [grown[:1000].count(side) for side in sides]
    assert max(shares) - min(shares) <= math.ceil(1000 / len(sides) / 50) + 1
