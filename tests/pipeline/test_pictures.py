import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.pictures import Picture, write_pictures


def maker(data: bytes) -> Callable[[], Picture]:
    return lambda: Picture(data, (0.0, 0.25, 0.5, 1.0))


def write(out: Path, paths: list[str], *, workers: int = 2) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    makers = [(Path(path), maker(path.encode())) for path in paths]
    number = write_pictures(
        out, makers, total=len(paths), workers=workers,
        on_progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert number == len(paths)
    return told


@pytest.mark.parametrize("workers", [1, 3])
def test_pictures_and_their_boxes_are_written_in_order(tmp_path: Path, workers: int) -> None:
    paths = [f"train/c/{index}.JPEG" for index in range(9)] + ['val/a, "b"/x.JPEG']
    told = write(tmp_path / "out", paths, workers=workers)
    assert told == [(done, 10) for done in range(1, 11)]
    for path in paths:
        assert (tmp_path / "out" / path).read_bytes() == path.encode()
    with (tmp_path / "out/boxes.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "x0", "y0", "x1", "y1"]
    assert [row[0] for row in rows] == paths
    assert {tuple(row[1:]) for row in rows} == {("0.00000", "0.25000", "0.50000", "1.00000")}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_picture_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Picture:
        raise SourceError("this one")

    makers = [(Path("train/c/1.JPEG"), maker(b"1")), (Path("train/c/2.JPEG"), fail)]
    with pytest.raises(SourceError, match="this one"):
        write_pictures(tmp_path / "out", makers, total=2, workers=1, on_progress=None)
    assert not list(tmp_path.iterdir())


def test_a_killed_runs_leavings_are_replaced(tmp_path: Path) -> None:
    (tmp_path / ".out.partial/train").mkdir(parents=True)
    write(tmp_path / "out", ["train/c/1.JPEG"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_holds_something_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"OUT must be absent or an empty folder; got .*, which"):
        write(tmp_path, ["a"])
    with pytest.raises(ConfigError, match=r"OUT must be writable; got .*file"):
        write(tmp_path / "file" / "out", ["train/c/a"])
