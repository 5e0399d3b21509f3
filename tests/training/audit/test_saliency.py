import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from training.audit.saliency import HEAT_PX, draw_heat, peaks, read_maps, smoothed
from training.config import TrainConfig
from training.data.shards import Shards
from training.model.proposer import mean_over_boxes
from training.run.processes import Process
from training.run.state import build_model


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_peak_is_the_middle_of_the_cell_that_scores_take_it_for(
    rows: int, columns: int, data: st.DataObject
) -> None:
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    one_BMN = torch.zeros(1, rows, columns)
    one_BMN[0, row, column] = 1
    ((x, y),) = peaks(one_BMN)
    around = (x - 0.5 / columns, y - 0.5 / rows, x + 0.5 / columns, y + 0.5 / rows)
    assert mean_over_boxes(one_BMN, torch.tensor([around])).item() == pytest.approx(1, abs=1e-4)


def test_of_equal_cells_the_first_in_reading_order_is_the_peak() -> None:
    assert peaks(torch.zeros(2, 4, 2)) == [(0.25, 0.125)] * 2


def test_heat_is_bright_where_the_map_is_high_on_one_scale_for_all() -> None:
    maps_BMN = torch.zeros(2, 4, 4)
    maps_BMN[0, 0, 0], maps_BMN[0, 3, 3] = 5, -5
    heat = draw_heat(maps_BMN + torch.tensor([0.0, 100.0])[:, None, None])
    loud, flat = (pixels(image).astype(float) for image in heat.images)
    assert loud.shape == (HEAT_PX, HEAT_PX, 4)
    assert loud[0, 0, :3].sum() > flat[0, 0, :3].sum() > loud[-1, -1, :3].sum()
    assert np.ptp(flat, axis=(0, 1)).max() == 0
    assert 0 < loud[0, 0, 3] < 255
    assert heat.low < 0 < heat.high
    strip = pixels(heat.legend)[0, :, :3].astype(float) @ (0.3, 0.6, 0.1)
    assert (np.diff(strip) > -1.5).all()  # ordered but for the rounding of bytes


def test_maps_that_say_nothing_are_drawn_as_well() -> None:
    assert len(draw_heat(torch.zeros(3, 4, 4)).images) == 3


@pytest.mark.parametrize("sides", [(7, 7), (14, 14), (4, 5)])
def test_a_smoothed_map_weighs_what_a_window_holds(sides: tuple[int, int]) -> None:
    maps_BMN = torch.rand(3, *sides)
    found_BMN = smoothed(maps_BMN)
    for b in range(3):
        picture = Image.fromarray((maps_BMN[b] - maps_BMN[b].mean()).numpy())
        fine = np.asarray(picture.resize((57, 57), Image.Resampling.BILINEAR))
        padded = np.pad(fine, 9)
        for m, n in [(0, 0), (0, 56), (28, 30), (56, 56)]:
            expected = padded[m : m + 19, n : n + 19].mean()
            assert found_BMN[b, m, n].item() == pytest.approx(expected, abs=1e-5)


def test_a_peak_of_a_smoothed_map_lies_in_the_middle_of_what_is_high() -> None:
    maps_BMN = torch.full((2, 7, 7), 50.0)  # a map counts from its own mean, whatever that is
    maps_BMN[0, 1:4, 3:6] += 9
    maps_BMN[1, 0, 6] += 9
    (inner, corner) = peaks(smoothed(maps_BMN))
    assert inner == pytest.approx((4.5 / 7, 2.5 / 7), abs=0.02)
    assert corner[0] > 5 / 7
    assert corner[1] < 2 / 7


def test_only_a_map_proposer_has_maps(
    opened: Shards, alone: Process, tiny: Callable[..., TrainConfig]
) -> None:
    assert read_maps(build_model(tiny(), opened, alone), opened, [0], alone) is None
    model = build_model(tiny(proposer="map"), opened, alone).eval()
    maps_BMN = read_maps(model, opened, [7, 0], alone)
    (swapped,) = (read_maps(model, opened, [0, 7], alone),)
    assert maps_BMN is not None
    assert swapped is not None
    assert maps_BMN.shape == (2, 4, 4)
    torch.testing.assert_close(maps_BMN.flip(0), swapped)
