from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.audit.boxes import choose_on_boxes, read_boxes, score_boxes
from training.config import TrainConfig
from training.data.processes import Process
from training.run.state import build_model

LEFT, RIGHT, CENTRE = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.25, 0.0, 0.75, 1.0)
CROPS = (LEFT, RIGHT, CENTRE)


def test_the_figures_by_hand() -> None:
    boxes = [[(0.0, 0.0, 0.2, 0.2)], [(0.4, 0.0, 0.8, 1.0)]]
    found = score_boxes([0, 1], boxes, CROPS, centre=2)
    # In the first image left covers all, the others nothing; in the second left covers a quarter,
    # right three, centre seven eighths, and the middle, at 0.6, lies in right and centre.
    assert found.num_samples == 2
    assert found.coverage == pytest.approx((1 + 0.75) / 2)
    assert found.coverage_centre == pytest.approx((0 + 0.875) / 2)
    assert found.coverage_random == pytest.approx((1 + 0.25 + 0.75 + 0.875) / 6)
    assert found.coverage_best == pytest.approx((1 + 0.875) / 2)
    assert found.pointing == 1
    assert found.pointing_random == pytest.approx(3 / 6)
    assert score_boxes([0], boxes[:1], CROPS, centre=None).coverage_centre is None
    assert (found.top1, found.top1_best) == (None, None)
    right = np.array([[True, False, False], [False, False, True]])
    scored = score_boxes([0, 1], boxes, CROPS, centre=2, right_NK=right)
    assert (scored.top1, scored.top1_best) == (50, 100)


def test_the_crop_that_fits_best_is_the_one_to_take_and_not_the_whole_image() -> None:
    crops = ((0.0, 0.0, 1.0, 1.0), LEFT, RIGHT)
    right = np.array([[False, True, False]])
    # A twentieth of the object sticks out to the right: the whole image alone covers all of it.
    found = score_boxes([0], [[(0.12, 0.1, 0.52, 0.4)]], crops, centre=None, right_NK=right)
    assert (found.coverage, found.top1, found.top1_best) == (1, 0, 100)
    several = [[(0.12, 0.1, 0.52, 0.4), (0.6, 0.0, 1.0, 1.0)]]
    assert score_boxes([0], several, crops, centre=None, right_NK=right).top1_best == 0


def test_the_pointing_game_asks_for_the_point_inside_a_box() -> None:
    boxes = [[(0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 0.6, 0.6)], [(0.4, 0.4, 0.5, 0.6)]]
    found = score_boxes([0, 1], boxes, CROPS, centre=2, peaks_N=[(0.1, 0.1), (0.1, 0.1)])
    assert found.pointing_map == 0.5
    assert found.pointing_centre == 0.5  # left and upper edges are inside, the others are not
    edge = score_boxes([0, 1], boxes, CROPS, centre=2, peaks_N=[(0.2, 0.1), (0.4, 0.4)])
    assert edge.pointing_map == 0.5
    assert score_boxes([0, 1], boxes, CROPS, centre=2).pointing_map is None


def test_an_image_may_have_several_boxes() -> None:
    boxes = [[(0.0, 0.0, 0.2, 1.0), (0.9, 0.0, 1.0, 1.0)]]
    left, right = (score_boxes([k], boxes, CROPS, centre=2) for k in (0, 1))
    assert (left.coverage, right.coverage) == pytest.approx((2 / 3, 1 / 3))
    assert left.pointing == right.pointing == 1


edges = st.tuples(st.integers(0, 9), st.integers(1, 10)).map(
    lambda pair: (pair[0] / 10, min(1.0, (pair[0] + pair[1]) / 10))
)
boxes_of = st.tuples(edges, edges).map(lambda e: (e[0][0], e[1][0], e[0][1], e[1][1]))


@given(boxes=st.lists(st.lists(boxes_of, min_size=1, max_size=3), min_size=1, max_size=4))
def test_no_choice_covers_more_than_the_best_and_the_whole_covers_all(
    boxes: list[list[tuple[float, float, float, float]]],
) -> None:
    for k in range(3):
        found = score_boxes([k] * len(boxes), boxes, CROPS, centre=2)
        assert 0 <= found.coverage <= found.coverage_best + 1e-9
        assert found.coverage_best <= 1 + 1e-9
    whole = score_boxes([0] * len(boxes), boxes, [(0.0, 0.0, 1.0, 1.0)], centre=None)
    assert whole.coverage == pytest.approx(1)


def test_boxes_are_read_by_image(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text('path,x0,y0,x1,y1\nval/a/1.JPEG,0,0,0.5,1\n"val/b,c/2.JPEG",0.1,0.2,0.3,0.4\n'
                    "val/a/1.JPEG,0.5,0.5,1,1\n")  # fmt: skip
    assert read_boxes(path) == {
        "val/a/1.JPEG": [(0, 0, 0.5, 1), (0.5, 0.5, 1, 1)],
        "val/b,c/2.JPEG": [(0.1, 0.2, 0.3, 0.4)],
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("path,x0,y0,x1\na,0,0,1\n", "KeyError: 'y1'"),
        ("path,x0,y0,x1,y1\na,0,0,one,1\n", "ValueError: could not convert"),
        ("path,x0,y0,x1,y1\na,0.5,0,0.5,1\n", r"ValueError: box 0\.5, 0\.0, 0\.5, 1\.0 in line 2"),
        ("path,x0,y0,x1,y1\na,0,0,1.5,1\n", "in line 2"),
        ("path,x0,y0,x1,y1\na,0,0,nan,1\n", "in line 2"),
        ("path,x0,y0,x1,y1\na,0,0\n", "TypeError"),
    ],
)
def test_what_is_no_table_of_boxes_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"--boxes must be a CSV with .*; got .*{reason}"):
        read_boxes(path)
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_boxes(tmp_path / "none.csv")


def test_with_dev_the_boxes_are_those_of_the_training_images_that_validate(
    scene_shards: Path, scenes: Path
) -> None:
    shards = ShardFolder.open(scene_shards).with_dev()
    config, alone = TrainConfig(policy="straight-through", model="test_resnet"), Process()
    model = build_model(config, shards, alone).eval()
    found = choose_on_boxes(model, shards, scenes / "boxes.csv", logits=None, process=alone)
    assert found.num_samples == shards.manifest.num_samples("val")
