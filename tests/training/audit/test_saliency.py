from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import ShardFolder
from training.audit.saliency import peaks, read_maps, smoothed
from training.config import TrainConfig
from training.data.processes import Process
from training.model.proposer import mean_over_boxes
from training.run.state import build_model


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
    opened: ShardFolder, alone: Process, tiny: Callable[..., TrainConfig]
) -> None:
    assert read_maps(build_model(tiny(), opened, alone), opened, [0], alone) is None
    model = build_model(tiny(proposer="map"), opened, alone).eval()
    maps_BMN = read_maps(model, opened, [7, 0], alone)
    (swapped,) = (read_maps(model, opened, [0, 7], alone),)
    assert maps_BMN is not None
    assert swapped is not None
    assert maps_BMN.shape == (2, 4, 4)
    torch.testing.assert_close(maps_BMN.flip(0), swapped)
