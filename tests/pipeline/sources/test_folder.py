import gzip
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image
from reported import Reported

from pipeline.common.errors import SourceError
from pipeline.decode.rules import FORMATS
from pipeline.sources.folder import IMAGE_SUFFIXES, Source, open_source

Member = tuple[str, bytes]

IMAGES = [
    ("root/train/cat/a.JPEG", b"train cat"),
    ("root/train/dog/a.JPEG", b"train dog"),
    ("root/val/cat/a.JPEG", b"val cat"),
    ("root/val/dog/deep/a.png", b"val dog"),
]


def write_archive(
    path: Path, members: Iterable[Member | tarfile.TarInfo], mode: str = "gz"
) -> Path:
    with tarfile.open(path, f"w:{mode}") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def write_folder(root: Path, members: Iterable[Member]) -> Path:
    for name, data in members:
        path = root / name.removeprefix("root/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def list_source(tmp_path: Path) -> Callable[[Path], Source]:
    (tmp_path / "scratch").mkdir()
    return lambda source: open_source(source, scratch=tmp_path / "scratch/images")


List = Callable[[Path], Source]


@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_bytes_that_are_no_text_are_spelt_out(
    write: Callable[[Path, Iterable[Member]], Path], list_source: List, tmp_path: Path
) -> None:
    odd = [(name.replace("dog", "d\udcff/\udc80"), data) for name, data in IMAGES]
    source = list_source(write(tmp_path / "source", odd))
    assert source.classes == ("cat", r"d\xff")
    (image,) = (image for image in source.images["train"] if image.class_name != "cat")
    assert (image.path, image.read()) == (r"train/d\xff/\x80/a.JPEG", b"train dog")


@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_a_byte_and_its_spelling_are_two_names(
    write: Callable[[Path, Iterable[Member]], Path], list_source: List, tmp_path: Path
) -> None:
    odd = [
        *((name.replace("dog", "\udcff"), data) for name, data in IMAGES),
        *((name.replace("dog", r"\xff"), data + b"!") for name, data in IMAGES if "dog" in name),
        ("root/train/cat/\udcfe.png", b"byte"),
        (r"root/train/cat/\xfe.png", b"spelling"),
    ]
    source = list_source(write(tmp_path / "source", odd))
    assert source.classes == (r"\\xff", r"\xff", "cat")
    found = contents(source)
    assert (found[r"train/\xff/a.JPEG"], found[r"train/\\xff/a.JPEG"]) == (
        b"train dog", b"train dog!",
    )  # fmt: skip
    assert (found[r"train/cat/\xfe.png"], found[r"train/cat/\\xfe.png"]) == (b"byte", b"spelling")


def contents(source: Source) -> dict[str, bytes]:
    return {image.path: image.read() for images in source.images.values() for image in images}


def test_a_folder_and_an_archive_of_it_hold_the_same(tmp_path: Path, list_source: List) -> None:
    folder = list_source(write_folder(tmp_path / "folder", IMAGES))
    for mode in ("gz", "xz", "bz2", ""):
        archive = list_source(write_archive(tmp_path / "a.tar", IMAGES, mode))
        assert contents(archive) == contents(folder)
        assert archive.classes == folder.classes == ("cat", "dog")
    assert contents(folder)["val/dog/deep/a.png"] == b"val dog"
    assert {image.split for image in folder.images["val"]} == {"val"}


def test_an_archive_may_begin_at_train_and_val(tmp_path: Path, list_source: List) -> None:
    bare = [(name.replace("root/", prefix), data) for prefix in ("", "./") for name, data in IMAGES]
    for members in (bare[:4], bare[4:]):
        archive = list_source(write_archive(tmp_path / "a.tgz", members))
        assert len(contents(archive)) == 4


def test_progress_ends_at_the_archives_size(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tgz", IMAGES)
    progress = Reported()
    open_source(archive, scratch=tmp_path / "s", progress=progress)
    size = archive.stat().st_size
    assert progress.calls[-1] == ("reading the archive", size, size)
    assert (counts := [done for _, done, _ in progress.calls]) == sorted(counts)


def test_images_have_the_suffixes_that_pillow_registers_for_the_formats_that_are_read() -> None:
    read = (*FORMATS, "MPO")  # which comes in through JPEG
    registered = Image.registered_extensions().items()
    assert list(IMAGE_SUFFIXES) == sorted(suffix for suffix, kind in registered if kind in read)


def test_the_page_of_the_format_lists_the_suffixes() -> None:
    page = (Path(__file__).resolve().parents[3] / "shards/README.md").read_text()
    (listed,) = re.findall(
        r"counts as an image by its suffix, in any case: (.*?)\. ", page, re.DOTALL
    )
    assert tuple(re.findall(r"`(.+?)`", listed)) == IMAGE_SUFFIXES


@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_every_suffix_is_taken_in_any_case(
    write: Callable[[Path, Iterable[Member]], Path], list_source: List, tmp_path: Path
) -> None:
    names = [f"a{suffix}" for suffix in IMAGE_SUFFIXES] + [
        f"B{suffix.upper()}" for suffix in IMAGE_SUFFIXES
    ]
    more = [(f"root/train/cat/deep/{name}", b"x") for name in names]
    source = list_source(write(tmp_path / "source", [*IMAGES, *more]))
    found = {os.path.basename(path) for path in contents(source) if "/deep/" in path}
    assert found == {*names, "a.png"}
    assert source.skipped == ()


def test_stray_files_are_named_and_skipped(tmp_path: Path, list_source: List) -> None:
    strays = [
        ("root/noisy.csv", b"x"),
        ("root/test/cat/a.JPEG", b"x"),
        ("root/train/README", b"x"),
        ("root/train/cat/notes.txt", b"x"),
    ]
    archive = list_source(write_archive(tmp_path / "a.tgz", IMAGES + strays))
    assert archive.skipped == tuple(name for name, _ in strays)
    folder = list_source(write_folder(tmp_path / "folder", IMAGES + strays))
    assert set(folder.skipped) == {"noisy.csv", "test", "train/README", "train/cat/notes.txt"}
    assert len(contents(archive)) == len(contents(folder)) == len(IMAGES)


def test_links_in_an_archive_are_named_and_skipped(tmp_path: Path, list_source: List) -> None:
    links = [
        link("root/train/cat/s.JPEG", "../dog/a.JPEG", tarfile.SYMTYPE),
        link("root/train/cat/h.JPEG", "root/train/cat/a.JPEG", tarfile.LNKTYPE),
    ]
    archive = list_source(write_archive(tmp_path / "a.tgz", [*IMAGES, *links]))
    assert archive.skipped == tuple(info.name for info in links)
    assert len(contents(archive)) == len(IMAGES)


def test_an_image_that_is_twice_in_an_archive_is_refused(tmp_path: Path, list_source: List) -> None:
    for again in ("root/train/cat/a.JPEG", "other/train/cat/a.JPEG"):
        archive = write_archive(tmp_path / "a.tgz", [*IMAGES, (again, b"x")])
        with pytest.raises(SourceError, match=r"once; got train/cat/a\.JPEG more than once in"):
            list_source(archive)


@pytest.mark.parametrize("mode", ["gz", "xz", "bz2", ""])
def test_an_archive_that_was_cut_anywhere_is_refused(
    mode: str, tmp_path: Path, list_source: List
) -> None:
    data = write_archive(tmp_path / "a.tar", IMAGES, mode).read_bytes()
    used = len(data) if mode else 8 * 512  # then come the two blocks of the end, and filling
    archive = tmp_path / "cut.tgz"
    for length in range(0, used, 1 if mode == "gz" else 97):
        archive.write_bytes(data[:length])
        with pytest.raises(SourceError, match=r"complete \.tgz; got .* in .*cut\.tgz\. Downlo"):
            list_source(archive)


def test_a_flipped_byte_in_an_archive_is_refused_or_means_nothing(
    tmp_path: Path, list_source: List
) -> None:
    data = write_archive(tmp_path / "a.tgz", IMAGES).read_bytes()
    whole = contents(list_source(tmp_path / "a.tgz"))
    num_refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        archive = tmp_path / "flipped.tgz"
        archive.write_bytes(flipped)
        try:
            source = list_source(archive)
        except SourceError:
            num_refused += 1
        else:
            assert contents(source) == whole
    assert num_refused > len(data) * 0.9  # gzip's header has a time and a name that nobody reads


def test_a_flipped_header_in_a_plain_tar_is_no_early_end(tmp_path: Path, list_source: List) -> None:
    data = bytearray(write_archive(tmp_path / "a.tar", IMAGES, "").read_bytes())
    data[4 * 512 + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match="no end of the archive at offset 2048"):
        list_source(tmp_path / "a.tar")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, list_source: List) -> None:
    for data in (b"", b"text", gzip.compress(b"text")):
        (tmp_path / "a.tgz").write_bytes(data)
        with pytest.raises(SourceError, match=r"complete \.tgz"):
            list_source(tmp_path / "a.tgz")


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    big = ("root/train/cat/b.JPEG", os.urandom(1 << 20))
    archive = write_archive(tmp_path / "a.tgz", [*IMAGES, big])
    with pytest.raises(OSError, match="No space left") as caught:
        open_source(archive, scratch=Path("/dev/full"))
    assert caught.value.filename == "/dev/full"


def test_a_missing_source_is_named_with_a_command_that_gets_one(
    tmp_path: Path, list_source: List
) -> None:
    with pytest.raises(SourceError, match=r"/none, which does not exist\. .*srp-data download"):
        list_source(tmp_path / "none")


def test_an_empty_class_is_named(tmp_path: Path, list_source: List) -> None:
    folder = write_folder(tmp_path / "folder", IMAGES)
    (folder / "train/emu").mkdir()
    (folder / "val/emu").mkdir()
    with pytest.raises(SourceError, match=r"got 0 in train/emu of .*folder\. Add images or"):
        list_source(folder)


def test_a_class_in_one_split_only_is_named(tmp_path: Path, list_source: List) -> None:
    folder = write_folder(tmp_path / "folder", [*IMAGES, ("root/train/emu/a.JPEG", b"x")])
    with pytest.raises(SourceError, match=r"got no val/emu in .*folder\. Add the folder, or"):
        list_source(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_source_without_a_split_is_refused(split: str, tmp_path: Path, list_source: List) -> None:
    folder = write_folder(tmp_path / "folder", IMAGES)
    shutil.rmtree(folder / split)
    with pytest.raises(SourceError, match=rf"got no class folder in {split}/ of .*Give the folder"):
        list_source(folder)


def test_linked_images_of_a_folder_count_and_devices_do_not(
    tmp_path: Path, list_source: List
) -> None:
    folder = write_folder(tmp_path / "folder", IMAGES)
    (folder / "train/cat/link.JPEG").symlink_to(folder / "val/cat/a.JPEG")
    (folder / "train/cat/broken.JPEG").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "train/cat/fifo.JPEG")
    source = list_source(folder)
    assert source.skipped == ("train/cat/fifo.JPEG",)
    sizes = {image.path: image.size for image in source.images["train"]}
    assert sizes["train/cat/link.JPEG"] == len(b"val cat")
    assert sizes["train/cat/broken.JPEG"] == 0
