import pytest

from pipeline.common.errors import ConfigError
from pipeline.format.crops import Box, place_crops


def test_the_five_boxes_are_the_corners_and_the_centre_in_torchvisions_order() -> None:
    plan = place_crops("five", canvas_px=336, crop_px=224)
    assert plan.names == ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
    assert plan.boxes == (
        Box(0, 0, 224, 224),
        Box(112, 0, 336, 224),
        Box(0, 112, 224, 336),
        Box(112, 112, 336, 336),
        Box(56, 56, 280, 280),
    )
    assert plan.normalised()[4] == (56 / 336, 56 / 336, 280 / 336, 280 / 336)


def test_the_grid_holds_the_five_and_what_lies_between() -> None:
    five = place_crops("five", canvas_px=75, crop_px=60)
    grid = place_crops("grid3", canvas_px=75, crop_px=60)
    assert [grid.boxes[k] for k in grid.indices("five")] == list(five.boxes)
    assert (len(grid), grid.resized) == (9, ())
    assert sorted({(box.x0, box.y0) for box in grid.boxes}) == [
        (x, y) for x in (0, 8, 15) for y in (0, 8, 15)
    ]


def test_a_canvas_without_room_for_three_strips_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"room for three strips; got --canvas-size 2 px"):
        place_crops("full+strips", canvas_px=2, crop_px=2)


def test_a_smaller_set_is_found_in_a_larger_one() -> None:
    plan = place_crops("full+five", canvas_px=10, crop_px=6)
    assert plan.indices("five") == (1, 2, 3, 4, 5)
    assert plan.indices("full+five") == (0, 1, 2, 3, 4, 5)
    assert plan.indices("centre,full") == (5, 0)
    assert plan.resized == (0,)


def test_a_set_that_the_shards_lack_is_refused_with_the_command_that_makes_it() -> None:
    plan = place_crops("five", canvas_px=10, crop_px=6)
    with pytest.raises(ConfigError, match=r"build shards with --candidates full\+five"):
        plan.indices("full+five")


def test_a_crop_larger_than_the_canvas_is_refused_by_its_option() -> None:
    with pytest.raises(ConfigError, match=r"--crop-size 11 px for --canvas-size 10 px\. Lower"):
        place_crops("five", canvas_px=10, crop_px=11)


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"one of five, strips, grid3, .*; got 'six'"):
        place_crops("six", canvas_px=10, crop_px=5)
