import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import ConfigError, SourceError
from pipeline.datasets.config import ScatterConfig
from pipeline.datasets.scatter import Scattered, draw_scattered, scatter
from pipeline.write.planning import assign_keys

SIZE_PX = 96


def run(source: Path, out: Path, **options: Any) -> Scattered:
    config = ScatterConfig(**{"source": source, "out": out, "size_px": SIZE_PX} | options)
    return scatter(config)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_boxes(folder: Path) -> dict[str, tuple[float, ...]]:
    with (folder / "boxes.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "x0", "y0", "x1", "y1"]
    return {path: tuple(map(float, edges)) for path, *edges in rows}


def test_every_image_is_scattered_once_in_its_split_and_class(
    image_tree: Path, tmp_path: Path
) -> None:
    sources = [path for path in image_tree.rglob("*.JPEG") if path.is_file()]
    assert run(image_tree, tmp_path / "out") == (len(sources), ())
    boxes = read_boxes(tmp_path / "out")
    assert set(boxes) == set(hashes(tmp_path / "out")) - {"boxes.csv"}
    folders = sorted(path.relative_to(image_tree).parent.as_posix() for path in sources)
    assert sorted(Path(path).parent.as_posix() for path in boxes) == folders
    for path, (x0, y0, x1, y1) in boxes.items():
        with Image.open(tmp_path / "out" / path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (96, 96))
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        longer = max(x1 - x0, y1 - y0)
        assert ScatterConfig.smallest - 1 / SIZE_PX <= longer <= ScatterConfig.largest + 1 / SIZE_PX


def test_shards_of_the_pictures_have_the_keys_of_the_images(
    image_tree: Path, tmp_path: Path
) -> None:
    run(image_tree, tmp_path / "out")
    keys = []
    for source in (image_tree, tmp_path / "out"):
        paths = [p.relative_to(source).as_posix() for p in source.glob("train/*/*.JPEG")]
        keys.append(sorted(assign_keys(paths).values()))
    assert keys[0] == keys[1] != []


def test_equal_seeds_give_equal_bytes_with_any_number_of_threads(
    image_tree: Path, tmp_path: Path
) -> None:
    for name, options in (("a", {"workers": 1}), ("b", {"workers": 4}), ("c", {"seed": 1})):
        run(image_tree, tmp_path / name, **options)
    first, again, other = (hashes(tmp_path / name) for name in "abc")
    assert first == again
    assert set(first) == set(other)
    assert not set(first.values()) & set(other.values())


def test_an_archive_gives_the_same_pictures(
    image_tree: Path, image_archive: Path, tmp_path: Path
) -> None:
    run(image_tree, tmp_path / "folder")
    run(image_archive, tmp_path / "archive")
    assert hashes(tmp_path / "folder") == hashes(tmp_path / "archive")


def test_the_box_is_exact_and_the_image_is_not_covered() -> None:
    bank = [Image.new("RGB", (40, 40), (0, 0, level)) for level in (50, 200)]
    config = ScatterConfig(source=Path(), out=Path(), size_px=100, smallest=0.2, largest=0.4)
    places = set()
    for seed in range(20):
        image = Image.new("RGB", (60, 30), (255, 0, 0))
        rng = np.random.default_rng(seed)
        picture, (x0, y0, x1, y1) = draw_scattered(image, bank, config=config, rng=rng)
        rows, columns = np.nonzero(np.asarray(picture)[..., 0] == 255)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert seen == tuple(round(100 * edge) for edge in (x0, y0, x1, y1))
        assert len(rows) == (seen[2] - seen[0]) * (seen[3] - seen[1])
        assert 20 <= seen[2] - seen[0] <= 40
        assert seen[3] - seen[1] == pytest.approx((seen[2] - seen[0]) / 2, abs=0.5)
        places.add(seen[:2])
    assert len(places) == 20


def test_the_ground_is_made_of_the_bank_and_covers_the_canvas() -> None:
    bank = [Image.new("RGB", (40, 50), (0, level, 0)) for level in (90, 160)]
    config = ScatterConfig(source=Path(), out=Path(), size_px=64)
    for seed in range(10):
        picture, _ = draw_scattered(
            Image.new("RGB", (9, 9), (255, 90, 0)), bank, config=config,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        assert set(np.unique(np.asarray(picture)[..., 1]).tolist()) == {90, 160}


def test_what_cannot_be_read_is_named_and_nothing_is_left(own_tree: Path, tmp_path: Path) -> None:
    (own_tree / "val/cat/cat_009.JPEG").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"cannot read val/cat/cat_009.*: .*Remove the file"):
        run(own_tree, tmp_path / "below" / "out")
    assert not (tmp_path / "below" / "out").exists()
    assert not list((tmp_path / "below").glob(".*"))


def test_an_output_that_holds_something_is_refused(image_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="OUT must be absent or an empty folder; got"):
        run(image_tree, tmp_path)


def test_scales_must_be_in_order() -> None:
    with pytest.raises(
        ConfigError, match=r"--largest must be at least --smallest; got --largest 0\.4 "
    ):
        ScatterConfig(source=Path(), out=Path(), smallest=0.5, largest=0.4)


def test_the_command_says_how_many(image_tree: Path, srp_data: Any, tmp_path: Path) -> None:
    result = srp_data("scatter", image_tree, tmp_path / "out", "--size=64", "--workers=1")
    assert result.exit_code == 0, result.output
    num_images = len(read_boxes(tmp_path / "out"))
    assert result.stdout == f"{num_images} images in {tmp_path / 'out'}\n"


@pytest.mark.parametrize("guard_px", [100, 2_000])
def test_the_option_alone_caps_the_pixels_of_an_image(
    guard_px: int,
    image_tree: Path,
    srp_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard_px)
    command = ("scatter", image_tree, tmp_path / "out", "--size=64", "-j2")
    refused = srp_data(*command, "--max-pixels=1000")
    assert "px is more than --max-pixels 1000. Remove " in refused.stderr
    scattered = srp_data(*command)
    assert scattered.exit_code == 0, scattered.stderr
    assert guard_px == Image.MAX_IMAGE_PIXELS


def test_what_is_not_scattered_is_counted_and_named(
    own_tree: Path, tmp_path: Path, srp_data: Any
) -> None:
    (own_tree / "train/cat/notes.txt").write_text("no image")
    (own_tree / "train/cat/loop").symlink_to(".")
    result = srp_data("scatter", own_tree, tmp_path / "out", "--size", SIZE_PX, "-j", 1)
    assert result.exit_code == 0
    for name in ("notes.txt", "loop"):
        assert f"\nskipped train/cat/{name}\n" in result.stdout


def test_a_source_that_is_not_there_leaves_nothing_behind(srp_data: Any, tmp_path: Path) -> None:
    result = srp_data("scatter", tmp_path / "nope", tmp_path / "deep/a/out")
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_new_file_system_and_what_a_kill_left_count_as_empty(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "lost+found").mkdir(parents=True)
    (out / ".build").mkdir()
    (out / ".build/.holder.json.77.partial").touch()
    result = srp_data("scatter", image_tree, out, "--size=32", "-j1")
    assert result.exit_code == 0, result.output
