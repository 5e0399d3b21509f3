import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reported import Reported

from pipeline.common.errors import ConfigError
from pipeline.datasets import scenes
from pipeline.datasets.scenes import CLASSES, SceneConfig, draw_dataset, draw_scene

SIZE_PX = 64


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_boxes(folder: Path) -> dict[str, tuple[float, ...]]:
    header, *lines = (folder / "boxes.csv").read_text().splitlines()
    assert header == "path,x0,y0,x1,y1"
    rows = (line.split(",") for line in lines)
    return {path: tuple(map(float, edges)) for path, *edges in rows}


def extreme_pixels(image: Image.Image) -> np.ndarray:
    """Where a scene is darker or brighter than any background: inside the object's outline."""
    gray = np.asarray(image.convert("L"))
    return (gray < 35) | (gray > 220)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "small"
    assert draw_dataset(SceneConfig(out=out, train=2, val=1, size_px=SIZE_PX)) == 30
    return out


def test_the_layout_is_imagenettes(small: Path) -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert list(CLASSES) == sorted(CLASSES)
    for split, count in (("train", 2), ("val", 1)):
        for name in CLASSES:
            files = sorted(path.name for path in (small / split / name).iterdir())
            assert files == [f"{name}_{index:04d}.JPEG" for index in range(count)]


def test_every_image_is_a_jpeg_of_the_asked_size(small: Path) -> None:
    for path in read_boxes(small):
        with Image.open(small / path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIZE_PX, SIZE_PX))


def test_every_image_has_one_box_inside_it(small: Path) -> None:
    boxes = read_boxes(small)
    assert set(boxes) == set(hashes(small)) - {"boxes.csv"}
    for x0, y0, x1, y1 in boxes.values():
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1


@pytest.mark.parametrize("name", CLASSES)
def test_the_box_is_exact_and_the_object_stands_out(name: str) -> None:
    size_px = 160
    for seed in range(4):
        image, box = draw_scene(name, size_px=size_px, rng=np.random.default_rng(seed))
        rows, columns = np.nonzero(extreme_pixels(image))
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # An edge that covers part of a pixel is too faint to count: hence up to two px of slack.
        np.testing.assert_allclose(np.array(box) * size_px, seen, atol=2)


@pytest.mark.parametrize("sides", [(0.2, 0.45), (0.1, 0.16), (0.6, 0.9)])
@pytest.mark.parametrize("name", CLASSES)
def test_the_objects_side_is_within_the_range_that_was_asked_for(
    name: str, sides: tuple[float, float]
) -> None:
    low, high = sides
    for seed in range(4):
        rng = np.random.default_rng(seed)
        _, (x0, y0, x1, y1) = draw_scene(name, size_px=224, rng=rng, sides=sides)
        assert low - 0.01 <= max(x1 - x0, y1 - y0) <= high + 0.01


def test_a_data_set_takes_its_range_from_the_options(tmp_path: Path) -> None:
    config = SceneConfig(
        out=tmp_path / "out", train=2, val=1, size_px=96, smallest=0.3, largest=0.4
    )
    draw_dataset(config)
    sides = [max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in read_boxes(config.out).values()]
    assert 0.27 < min(sides) <= max(sides) < 0.43
    with pytest.raises(
        ConfigError, match=r"--largest must be at least --smallest; got --largest 0.1"
    ):
        SceneConfig(out=tmp_path, largest=0.1)


def test_objects_lie_everywhere() -> None:
    boxes = np.array(
        [draw_scene("ring", size_px=32, rng=np.random.default_rng(seed))[1] for seed in range(200)]
    )
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = {(int(x * 3), int(y * 3)) for x, y in centres}
    assert cells == {(column, row) for column in range(3) for row in range(3)}


def test_shapes_fit_the_stencil_whichever_way_they_are_turned() -> None:
    for shape in scenes.SHAPES.values():
        for seed in range(50):
            for points, _ in shape(np.random.default_rng(seed)):
                assert max(abs(point) for point in points) < 1.5


def test_the_same_options_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    draw_dataset(SceneConfig(out=tmp_path / "again", train=2, val=1, size_px=SIZE_PX))
    assert hashes(tmp_path / "again") == hashes(small)


def test_an_image_does_not_depend_on_how_many_there_are(small: Path, tmp_path: Path) -> None:
    draw_dataset(SceneConfig(out=tmp_path / "more", train=3, val=2, size_px=SIZE_PX))
    boxes = read_boxes(tmp_path / "more")
    assert read_boxes(small).items() <= boxes.items()
    expected, got = hashes(small), hashes(tmp_path / "more")
    assert all(got[path] == expected[path] for path in read_boxes(small))


def test_no_two_images_are_equal_and_another_seed_changes_all(small: Path, tmp_path: Path) -> None:
    draw_dataset(SceneConfig(out=tmp_path / "other", train=2, val=1, size_px=SIZE_PX, seed=1))
    first, second = set(hashes(small).values()), set(hashes(tmp_path / "other").values())
    assert len(first) == 31
    assert not first & second


def test_progress_counts_every_image(tmp_path: Path) -> None:
    progress = Reported()
    draw_dataset(SceneConfig(out=tmp_path / "out", train=1, val=1, size_px=32), progress=progress)
    assert progress.calls == [("drawing scenes", count, 20) for count in range(1, 21)]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    draw_dataset(SceneConfig(out=out, train=1, val=1, size_px=32))
    assert (out / "boxes.csv").is_file()


@pytest.mark.parametrize("as_file", [True, False])
def test_what_exists_is_never_overwritten(tmp_path: Path, as_file: bool) -> None:
    kept = tmp_path / "out" if as_file else tmp_path / "out" / "kept.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    message = (
        f"OUT must be absent or an empty folder; got {tmp_path / 'out'}, which exists. "
        "Choose another folder, or delete this one first."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        draw_dataset(SceneConfig(out=tmp_path / "out", train=1, val=1))
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(num_drawn: int) -> None:
        if num_drawn == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_dataset(
            SceneConfig(out=tmp_path / "out", train=1, val=1, size_px=32),
            progress=Reported(interrupt),
        )
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_behind_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "out/.build/pictures/train/star/star_9999.JPEG"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half an im")
    (tmp_path / "out/.build/holder.json").touch()
    draw_dataset(SceneConfig(out=tmp_path / "out", train=1, val=1, size_px=32))
    assert not (tmp_path / "out/.build").exists()
    assert "train/star/star_9999.JPEG" not in hashes(tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = (
        r"^OUT must be a folder that can be written; got .*file/out: Not a dir.* Name another fol"
    )
    with pytest.raises(ConfigError, match=told):
        draw_dataset(SceneConfig(out=tmp_path / "file" / "out", train=1, val=1, size_px=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "--train must be at least 1; got 0."),
        ({"val": -1}, "--val must be at least 1; got -1."),
        ({"size_px": 8}, "--size must be at least 32; got 8."),
        ({"size_px": 10**6}, "--size must be at most 4096; got 1000000."),
        ({"seed": -1}, "--seed must be at least 0; got -1."),
    ],
)
def test_an_option_that_cannot_work_is_named(
    tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        SceneConfig(out=tmp_path / "out", **options)
