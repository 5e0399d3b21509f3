"""Folders as they really are: whatever lies in one becomes an image or is named."""

import errno
import os
import stat
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.folder import Source, open_source
from pipeline.write.planning import assign_keys

SPLITS = ("train", "val")
STEMS = [
    "a", "A", "b.c", ".", ".hidden", "..", "...", "__x__", "-", " ", "a b", "a\nb", "ß", "SS", "ﬀ",
    unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"),
    "\udcff", r"\xff", r"\\xff", "\udcc3", "\u202e", "\x1b[2J", "x" * 90, "con", "*", "?",
]  # fmt: skip
SUFFIXES = [".jpg", ".JPEG", ".png", ".tar.png", ".txt", ""]
NAMES = st.builds("{}{}".format, st.sampled_from(STEMS), st.sampled_from(SUFFIXES)).filter(
    lambda name: name not in (".", "..")
)
# Where a link may lead, from the folder that it lies in.
TARGETS = st.sampled_from(
    [".", "..", "../..", "../../..", "a.jpg", "A", "nowhere", "/dev/null", "/dev/zero", "../val"]
)
FILE, FIFO, SOCKET = (st.just((kind, "")) for kind in ("file", "fifo", "socket"))
LEAF = st.one_of(FILE, FILE, st.tuples(st.just("link"), TARGETS), FIFO, SOCKET)
FOLDER = st.recursive(
    st.dictionaries(NAMES, LEAF, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(LEAF, inner), max_size=4),
    max_leaves=8,
)
SPLIT = st.dictionaries(NAMES, st.one_of(LEAF, FOLDER), max_size=3)

Spec = dict[str, Any]


def plant(folder: Path, spec: Spec) -> None:
    """Make a folder's entries."""
    folder.mkdir()
    for name, entry in spec.items():
        path = folder / name
        if isinstance(entry, dict):
            plant(path, entry)
        elif entry[0] == "file":
            path.write_bytes(os.fsencode(path.name))
        elif entry[0] == "link":
            path.symlink_to(entry[1])
        else:
            os.mknod(path, (stat.S_IFIFO if entry[0] == "fifo" else stat.S_IFSOCK) | 0o600)


def with_an_image(spec: Spec) -> Spec:
    return {name: {"sound.png": ("file", ""), **entry} if isinstance(entry, dict) else entry
            for name, entry in spec.items()}  # fmt: skip


def grow(root: Path, classes: Spec, inside: Spec, stray: Spec) -> Path:
    """Make a source whose classes are in both splits, with what was drawn beside and in them."""
    plant(root, stray)
    for split, more in zip(SPLITS, (inside, {}), strict=True):
        plant(root / split, with_an_image({**classes, "a class": more}))
    return root


def list_folder(root: Path) -> Source:
    return open_source(root, scratch=root / "unused")


def entries_below(root: Path) -> list[Path]:
    """List everything but folders, by a walk that follows no link and knows no rule."""
    found = []
    for parent, folders, files in os.walk(root):
        found += [Path(parent, name) for name in files]
        found += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
    return found


def is_accounted_for(path: Path, root: Path, images: set[Path], named: set[Path]) -> bool:
    """Whether an entry is an image, or is named, or its folder is, or it leads to what is."""
    if path in images or any(place in named for place in (path, *path.parents)):
        return True
    is_followed = path.is_dir() and path.is_symlink()
    return is_followed and (
        not any(path.iterdir()) or any(path in place.parents for place in images | named)
    )


@given(classes=SPLIT, inside=FOLDER, stray=st.dictionaries(NAMES, LEAF, max_size=2))
def test_everything_in_a_folder_is_an_image_or_named(
    classes: Spec, inside: Spec, stray: Spec
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = grow(Path(folder) / "source", classes, inside, stray)
        source = list_folder(root)
        listed = [image for images in source.images.values() for image in images]
        images = {Path(image.file) for image in listed}
        named = {root / name for name in source.skipped}
        assert len(images) == len(listed)
        assert not images & named
        for path in entries_below(root):
            assert is_accounted_for(path, root, images, named), path
        for split in SPLITS:
            keys = assign_keys(image.path for image in source.images[split])
            assert len({key.casefold() for key in keys.values()}) == len(source.images[split])
        for image in listed:
            if os.path.exists(image.file):  # reading must not wait for a pipe
                assert image.read() == os.fsencode(os.path.basename(os.path.realpath(image.file)))
            else:
                with pytest.raises(OSError):  # noqa: PT011 - which one is up to the system
                    image.read()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of two classes, each with one image in each split."""
    for split in SPLITS:
        for name in ("cat", "dog"):
            (tmp_path / "source" / split / name).mkdir(parents=True)
            (tmp_path / "source" / split / name / "a.jpg").write_bytes(b"image")
    return tmp_path / "source"


def paths_in(source: Source, split: str = "train") -> list[str]:
    return sorted(image.path for image in source.images[split])


@pytest.mark.parametrize("target", [".", "..", "../..", "../val", "/"])
def test_a_link_in_place_of_a_class_that_leads_back_is_named(target: str, tree: Path) -> None:
    (tree / "train/loop").symlink_to(target)
    source = list_folder(tree)
    assert source.skipped == ("train/loop",)
    assert paths_in(source) == ["train/cat/a.jpg", "train/dog/a.jpg"]


def test_links_to_folders_are_followed_once(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep/b.jpg").write_bytes(b"more")
    (elsewhere / "deep/up").symlink_to("..")
    for split in SPLITS:
        (tree / split / "emu").symlink_to(elsewhere)
    (tree / "train/cat/more").symlink_to(elsewhere)
    (tree / "train/cat/again").symlink_to(elsewhere)
    (tree / "train/cat/self").symlink_to(".")
    source = list_folder(tree)
    assert source.classes == ("cat", "dog", "emu")
    assert paths_in(source) == [
        "train/cat/a.jpg", "train/cat/again/deep/b.jpg", "train/dog/a.jpg", "train/emu/deep/b.jpg",
    ]  # fmt: skip
    assert sorted(source.skipped) == [
        "train/cat/again/deep/up", "train/cat/more", "train/cat/self",
        "train/emu/deep/up", "val/emu/deep/up",
    ]  # fmt: skip


def test_a_real_folder_goes_before_a_link_to_it(tree: Path) -> None:
    (tree / "train/cat/z").mkdir()
    (tree / "train/cat/z/b.jpg").write_bytes(b"more")
    (tree / "train/cat/link").symlink_to("z")
    source = list_folder(tree)
    assert paths_in(source) == ["train/cat/a.jpg", "train/cat/z/b.jpg", "train/dog/a.jpg"]
    assert source.skipped == ("train/cat/link",)


def test_links_that_lead_nowhere_are_named(tree: Path) -> None:
    (tree / "train/itself").symlink_to("itself")
    (tree / "train/cat/itself.jpg").symlink_to("itself.jpg")
    source = list_folder(tree)
    assert source.skipped == ("train/itself",)
    (image,) = (image for image in source.images["train"] if "itself" in image.path)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        image.read()


@pytest.mark.parametrize("place", ["", "train", "val/dog", "train/cat/deep/er"])
def test_a_folder_that_cannot_be_listed_is_an_error_with_its_name(
    place: str, tree: Path, monkeypatch: pytest.MonkeyPatch, srp_data: Callable[..., Any]
) -> None:
    (tree / "train/cat/deep/er").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == tree / place:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    assert paths_in(list_folder(tree)) == ["train/cat/a.jpg", "train/dog/a.jpg"]
    monkeypatch.setattr(os, "scandir", refuse)
    result = srp_data("build-shards", tree, tree.with_name("out"), "-j", 1)
    assert result.exit_code == 1
    assert (
        f"cannot access {tree / place}: Permission denied. Check the path and its" in result.stderr
    )


def test_a_file_that_changes_after_it_was_listed_is_not_taken(tree: Path) -> None:
    image = list_folder(tree).images["train"][0]
    for other in (b"", b"imag", b"images"):
        Path(image.file).write_bytes(other)
        with pytest.raises(OSError, match="the file changed after it was listed"):
            image.read()
    Path(image.file).write_bytes(b"image")
    assert image.read() == b"image"


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_file_that_became_a_pipe_or_a_device_is_not_waited_for(kind: str, tree: Path) -> None:
    image = list_folder(tree).images["train"][0]
    path = Path(image.file)
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="the file changed after it was listed"):
        image.read()


def test_a_file_of_more_bytes_than_any_image_has_is_not_read(tree: Path) -> None:
    with (tree / "train/cat/a.jpg").open("wb") as file:
        file.truncate(50 << 30)  # a hole: no byte of it is on the disk
    image = next(i for i in list_folder(tree).images["train"] if "cat" in i.path)
    with pytest.raises(OSError, match=r"53687091200 bytes are more than 1073741824") as caught:
        image.read()
    assert caught.value.errno == errno.EFBIG
