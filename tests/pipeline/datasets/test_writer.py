import csv
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reported import Reported

from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.progress import SILENT
from pipeline.datasets.writer import Picture, write_pictures


def maker(data: bytes) -> Callable[[], Picture]:
    return lambda: Picture(data, (0.0, 0.25, 0.5, 1.0))


def write(out: Path, paths: list[str], *, workers: int = 2) -> list[tuple[str, int, int]]:
    progress = Reported()
    makers = [(Path(path), maker(path.encode())) for path in paths]
    number = write_pictures(
        out, makers, aside=out / "aside", total=len(paths), workers=workers,
        stage="writing", progress=progress,
    )  # fmt: skip
    assert number == len(paths)
    return progress.calls


@pytest.mark.parametrize("workers", [1, 3])
def test_pictures_and_their_boxes_are_written_in_order(tmp_path: Path, workers: int) -> None:
    paths = [f"train/c/{index}.JPEG" for index in range(9)] + ['val/a, "b"/x.JPEG']
    told = write(tmp_path / "out", paths, workers=workers)
    assert told == [("writing", done, 10) for done in range(1, 11)]
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
        write_pictures(
            tmp_path,
            makers,
            aside=tmp_path / "aside",
            total=2,
            workers=1,
            stage="",
            progress=SILENT,
        )
    assert not list(tmp_path.iterdir())


def test_a_killed_runs_leavings_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "out/aside/train/d").mkdir(parents=True)
    write(tmp_path / "out", ["train/c/1.JPEG"])
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        "1.JPEG", "boxes.csv", "c", "train",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"OUT must be a folder that can be written; got .*file"):
        write(tmp_path / "file" / "out", ["train/c/a"])


def test_complete_pictures_that_cannot_be_moved_are_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_from: Any, _to: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError) as caught:
        write(tmp_path, ["train/c/1.JPEG", "val/c/1.JPEG"])
    aside = tmp_path / "aside"
    assert str(caught.value) == (
        "cannot move the complete pictures to OUT: [Errno 16] Device or resource busy. Move "
        f"the content of {aside} to {tmp_path} yourself."
    )
    assert (aside / "val/c/1.JPEG").read_bytes() == b"val/c/1.JPEG"
    assert len((aside / "boxes.csv").read_text().splitlines()) == 3
    with pytest.raises(ConfigError, match=r"^an earlier run could not move its complete pictures"):
        write(tmp_path, ["train/c/2.JPEG"])
    assert len(list(aside.rglob("*.JPEG"))) == 2


@pytest.fixture
def mount_point(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that a file system of its own is mounted on."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = (
        subprocess.run(command, capture_output=True, text=True, check=False) if mount else None
    )
    if mounted is None or mounted.returncode:
        why = mounted.stderr.strip() if mounted else "there is no mount command"
        pytest.skip(f"needs to mount a tmpfs, which takes root: {why}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def simulated_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that refuses what a mount point refuses: to be renamed over."""
    folder, rename = tmp_path / "mounted", os.replace
    folder.mkdir()

    def refuse(source: Any, target: Any) -> None:
        if os.fspath(target) == str(folder):
            raise OSError(errno.EBUSY, "Device or resource busy", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    return folder


@pytest.mark.parametrize("fixture", ["mount_point", "simulated_mount_point"])
@pytest.mark.parametrize("command", ["sample", "scatter"])
def test_a_mount_point_is_filled(
    command: str, fixture: str, image_tree: Path, srp_data: Any, request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(fixture)
    arguments = ["--train=1", "--val=1"] if command == "sample" else [image_tree, "-j1"]
    result = srp_data(command, *arguments, "--size=32", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["boxes.csv", "train", "val"]
    num_pictures = sum(path.is_file() for path in out.glob("*/*/*"))
    assert len((out / "boxes.csv").read_text().splitlines()) == 1 + num_pictures
    assert [path.name for path in out.parent.iterdir()] == ["mounted"]
