import io
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.common.errors import SourceError
from pipeline.photos.find import find_photos


def found(*places: object, listed: bytes = b"") -> tuple[list[str], int | None]:
    photos = find_photos([str(place) for place in places], io.BytesIO(listed))
    return [str(file) for file in photos.files], photos.num_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images at two depths, of several suffixes, and files that are none."""
    touch(tmp_path, ["b.jpg", "a.PNG", "notes.txt", "inner/deep/c.webp", "inner/d.jpeg"])
    return tmp_path


def touch(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_gives_the_images_in_it_and_below_sorted_by_name(folder: Path) -> None:
    names = ["a.PNG", "b.jpg", "inner/d.jpeg", "inner/deep/c.webp"]
    assert found(folder) == ([f"{folder}/{name}" for name in names], 4)


def test_a_file_is_taken_whatever_its_suffix_and_as_often_as_it_is_named(folder: Path) -> None:
    note = folder / "notes.txt"
    assert found(note, note) == ([str(note)] * 2, 2)


def test_a_pattern_gives_files_and_the_images_of_folders(folder: Path) -> None:
    assert found(f"{folder}/*.jpg") == ([f"{folder}/b.jpg"], 1)
    assert found(f"{folder}/**/d.*") == ([f"{folder}/inner/d.jpeg"], 1)
    assert found(f"{folder}/in*")[1] == 2


def test_a_file_may_have_the_name_of_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, ["a[1].jpg", "a1.jpg"])
    assert found(tmp_path / "a[1].jpg")[0] == [f"{tmp_path}/a[1].jpg"]


def test_a_list_is_read_line_by_line_whatever_bytes_a_name_has() -> None:
    files, count = found("-", listed=b"a b.jpg\n\n\xff.jpg\r\nlast.jpg")
    assert files == ["a b.jpg", "\udcff.jpg", "last.jpg"]
    assert count is None


def test_a_list_is_not_read_ahead(tmp_path: Path) -> None:
    touch(tmp_path, ["a.jpg"])
    listed = io.BytesIO(b"one.jpg\n")
    photos = find_photos([f"{tmp_path}/a.jpg", "-"], listed)
    assert next(photos.files) == tmp_path / "a.jpg"
    assert listed.tell() == 0


def test_what_is_not_there_is_an_error_before_the_first_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("nothing.jpg", "no*.jpg"):
        with pytest.raises(SourceError, match="IMAGE must be a file, a folder or a pattern") as no:
            found(tmp_path / place)
        assert f"{tmp_path}/{place}, which does not exist" in str(no.value)
    with pytest.raises(SourceError, match=f"must hold some; got none in {tmp_path}/empty"):
        found(tmp_path / "empty")


def test_a_loop_of_links_ends(folder: Path) -> None:
    (folder / "inner/loop").symlink_to(folder)
    assert found(folder)[1] == 4
