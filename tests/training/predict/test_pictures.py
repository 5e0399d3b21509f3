"""A picture of a prediction: the photograph in its shape, the chosen crop lit, the map over it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import TrainConfig
from training.predict.load import LoadedRun, load_run
from training.predict.pictures import CAPTION_PX, DIM, LINE_PX, draw_picture, heat, save_picture
from training.predict.predict import PICTURE_PX, Prediction, Tally, predict
from training.predict.results import Result, Words, result_of
from training.saved.folder import RunPaths
from training.saved.record import RunRecord


@pytest.fixture(scope="module")
def run(finished: tuple[RunPaths, RunRecord]) -> LoadedRun:
    return load_run(finished[0].folder, torch.device("cpu"))


def predicted(run: LoadedRun, file: Path) -> tuple[Prediction, Result]:
    batches = predict(run, [file], num_files=1, workers=1, tally=Tally(), with_pictures=True)
    ((prediction,),) = batches
    return prediction, result_of(prediction, Words(run, run.class_names, 2))


@pytest.mark.parametrize("size", [(800, 300), (30, 40), (1, 2000), (2000, 1)])
def test_a_picture_has_the_shape_of_its_photograph_above_the_caption(
    size: tuple[int, int], run: LoadedRun, tmp_path: Path
) -> None:
    Image.new("RGB", size, "orange").save(tmp_path / "photo.png")
    picture = draw_picture(*predicted(run, tmp_path / "photo.png"), run)
    scale = PICTURE_PX / max(size)
    width, height = (max(1, round(scale * side)) for side in size)
    assert picture.size == (max(width, CAPTION_PX), height + 2 * LINE_PX)


def test_the_chosen_crop_is_lit_and_the_rest_is_dimmed(run: LoadedRun, tmp_path: Path) -> None:
    Image.new("RGB", (640, 640), (200, 100, 40)).save(tmp_path / "photo.png")
    prediction, result = predicted(run, tmp_path / "photo.png")
    pixels = np.asarray(draw_picture(prediction, result, run))[:640, :640]
    x0, y0, x1, y1 = (round(edge) for edge in result.box)
    lit = (pixels == (200, 100, 40)).all(2)
    assert lit[y0 + 8 : y1 - 8, x0 + 8 : x1 - 8].mean() > 0.9  # boxes cross it
    lit[y0:y1, x0:x1] = False
    assert not lit.any()
    if result.crop != "full":
        dimmed = (pixels == [int(DIM * value) for value in (200, 100, 40)]).all(2)
        assert dimmed.mean() > 0.9 * (1 - (x1 - x0) * (y1 - y0) / 640**2)


def test_heat_is_bright_where_the_map_is_high() -> None:
    map_MN = torch.zeros(4, 4)
    map_MN[0, 0], map_MN[3, 3] = 5, -5
    pixels = np.asarray(heat(map_MN, (40, 20))).astype(float).sum(2)
    assert pixels.shape == (20, 40)
    assert pixels[0, 0] > pixels[10, 20] > pixels[-1, -1]
    assert np.ptp(np.asarray(heat(torch.zeros(2, 2), (8, 8)))[..., 0]) == 0


def test_the_map_of_a_proposer_lies_over_the_picture(
    tiny: Callable[..., TrainConfig], train: Callable[..., RunRecord], tmp_path: Path
) -> None:
    train(tiny(proposer="map"), tmp_path / "run")
    run = load_run(tmp_path / "run", torch.device("cpu"))
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((640, 480)).save(tmp_path / "photo.png")
    prediction, result = predicted(run, tmp_path / "photo.png")
    assert prediction.map_MN is not None
    assert prediction.map_MN.ndim == 2
    assert prediction.photo.picture_HW3 is not None
    drawn = np.asarray(draw_picture(prediction, result, run))[:480].astype(int)
    x0, y0, x1, y1 = (round(edge) for edge in result.box)
    inside = np.s_[y0 + 8 : y1 - 8, x0 + 8 : x1 - 8]
    assert (drawn[inside] != prediction.photo.picture_HW3[inside]).any(2).mean() > 0.9


def test_files_have_numbers_so_that_equal_names_do_not_meet(run: LoadedRun, tmp_path: Path) -> None:
    name = f"{'ä' * 120}.png"
    Image.new("RGB", (20, 20)).save(tmp_path / name)
    prediction, result = predicted(run, tmp_path / name)
    paths = [
        save_picture(prediction, result, run, folder=tmp_path, number=number) for number in (0, 1)
    ]
    assert paths[0].name == f"000000-{'ä' * 50}.png"
    assert paths[0] != paths[1]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
