"""Archives whose senders mean harm: every one is refused in one line, at a known cost."""

import bz2
import gzip
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import SourceError
from pipeline.sources import archive as archives
from pipeline.sources.folder import Source, open_source

GOOD = [f"root/{split}/cat/a.JPEG" for split in ("train", "val")]
BLOCK = tarfile.BLOCKSIZE


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> bytes:
    """Give one block of a tar's header, as tarfile would refuse to write some of them."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, kind, len(data)) + data + bytes(-len(data) % BLOCK)


def pax(**records: str) -> bytes:
    """Give a pax header for the member behind it."""
    data = b""
    for name, value in records.items():
        rest = f" {name.replace('__', '.')}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        data += str(length).encode() + rest
    return member("pax", data, tarfile.XHDTYPE)


def packed(folder: Path, *blocks: bytes) -> Path:
    """Write a .tgz of two good images and of these blocks between them."""
    first, second = (member(name, b"image") for name in GOOD)
    path = folder / "a.tgz"
    path.write_bytes(gzip.compress(first + b"".join(blocks) + second + bytes(2 * BLOCK)))
    return path


def listed(path: Path, folder: Path) -> Source:
    scratch = folder / "scratch"
    return open_source(path, scratch=scratch)


def refusal(path: Path, folder: Path) -> str:
    """Say why an archive is refused; nothing but the scratch file may be there afterwards."""
    inner = folder / "inner"  # of the whole session's folder a look takes longer than a test
    inner.mkdir(exist_ok=True)
    before = {*folder.rglob("*"), inner / "scratch"}
    with pytest.raises(SourceError) as caught:
        listed(path, inner)
    assert set(folder.rglob("*")) <= before
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def paths_of(source: Source) -> list[str]:
    return [image.path for images in source.images.values() for image in images]


def test_the_archive_around_the_hostile_members_is_a_good_one(tmp_path: Path) -> None:
    plain = [member("root/train/cat/b.JPEG", b"more"), pax(path="root/train/cat/" + "n" * 200)]
    source = listed(packed(tmp_path, *plain, header("root/train/cat/c.JPEG")), tmp_path)
    assert paths_of(source) == ["train/cat/a.JPEG", "train/cat/b.JPEG", "val/cat/a.JPEG"]
    assert source.skipped == ("root/train/cat/" + "n" * 200,)


@pytest.mark.parametrize(
    "name",
    ["/root/train/cat/b.JPEG", "root/../../b.JPEG", "root/train/cat/../b.JPEG", "..", "//b.JPEG"],
)
def test_a_path_that_leaves_the_archive_is_refused(name: str, tmp_path: Path) -> None:
    for blocks in (member(name, b"x"), pax(path=name) + member("root/train/cat/b.JPEG", b"x")):
        message = refusal(packed(tmp_path, blocks), tmp_path)
        assert f"got a path that leaves it, {name!r}, in" in message
        assert message.endswith("Do not trust this archive.")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/hostname"),
        (tarfile.SYMTYPE, "../../../../b.JPEG"),
        (tarfile.LNKTYPE, "/etc/hostname"),
        (tarfile.LNKTYPE, "root/../../b.JPEG"),
    ],
)
def test_a_link_that_leaves_the_archive_is_refused(
    kind: bytes, target: str, tmp_path: Path
) -> None:
    for name in ("root/train/cat/b.JPEG", "root/train/cat/folder"):
        message = refusal(packed(tmp_path, header(name, kind, target=target)), tmp_path)
        assert f"a link that leaves it, {name!r} to {target!r}, in" in message


def test_a_member_behind_a_link_of_the_archive_stays_a_path(tmp_path: Path) -> None:
    blocks = [
        header("root/train/cat/out", tarfile.SYMTYPE, target="../dog"),
        member("root/train/cat/out/b.JPEG", b"x"),
    ]
    source = listed(packed(tmp_path, *blocks), tmp_path)
    assert paths_of(source)[1] == "train/cat/out/b.JPEG"
    assert source.skipped == ("root/train/cat/out",)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_refused(kind: bytes, tmp_path: Path) -> None:
    message = refusal(packed(tmp_path, header("root/train/cat/b.JPEG", kind)), tmp_path)
    assert "got the device or pipe 'root/train/cat/b.JPEG' in" in message


def old_sparse(size: int, *, num_more: int = 0) -> bytes:
    """Give a file of GNU's first sparse form: no bytes here, zeros on the disk.

    With `num_more` blocks its map goes on, the last of them says, after the end of the archive.
    """
    block = bytearray(header("root/train/cat/b.JPEG", tarfile.GNUTYPE_SPARSE))
    block[482] = num_more > 0
    block[483:495] = f"{size:011o}\0".encode()
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    more = bytes(504) + b"\1" + bytes(7)
    return bytes(block) + more * num_more


SPARSE_1 = pax(
    GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize=str(1 << 40)
)  # fmt: skip
SPARSE = {
    "old": old_sparse(1 << 32),
    "old, map without end": old_sparse(1 << 32, num_more=100),
    "0.0": pax(GNU__sparse__size=str(1 << 40)) + member("root/train/cat/b.JPEG", b"x"),
    "0.1": pax(GNU__sparse__map="0,1", size="1") + member("root/train/cat/b.JPEG", b"x"),
    "1.0": SPARSE_1 + member("root/train/cat/b.JPEG", b"1\n0\n1\n".ljust(BLOCK, b"\0") + b"x"),
    "1.0, map without end": SPARSE_1 + member("root/train/cat/b.JPEG", b"9999999\n" + b"0\n" * 999),
}  # fmt: skip


@pytest.mark.parametrize("form", SPARSE)
def test_a_sparse_file_is_refused_before_its_zeros_fill_the_disk(form: str, tmp_path: Path) -> None:
    assert "sparse file" in refusal(packed(tmp_path, SPARSE[form]), tmp_path)
    assert (tmp_path / "inner/scratch").stat().st_size <= len(b"image")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_header_that_would_fill_the_memory_is_refused_unread(
    kind: bytes, first: bool, tmp_path: Path
) -> None:
    size = archives.MAX_HEADER_BYTES + 1
    path = packed(tmp_path, header("long", kind, size))
    if first:
        path.write_bytes(gzip.compress(header("long", kind, size)))
    assert f"got a header of {size} bytes, more than 65536 in" in refusal(path, tmp_path)


def test_nonsense_in_headers_is_a_damaged_archive(tmp_path: Path) -> None:
    number = "9" * 5000
    for blocks in (
        pax(size="-512") + member("root/train/cat/b.JPEG", b"x"),
        header("root/train/cat/b.JPEG", size=-512),
        member("pax", b"12 hdrcharset=\xff\n", tarfile.XHDTYPE),
        member("pax", f"{number} path=a\n".encode(), tarfile.XHDTYPE),
        pax(GNU__sparse__map="0," + number) + member("root/train/cat/b.JPEG", b"x"),
        member("long", b"x", tarfile.XHDTYPE) * 2000,
    ):
        message = refusal(packed(tmp_path, blocks), tmp_path)
        assert "must be a complete .tgz; got" in message
        assert message.endswith("Download it again.")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_SMALL_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_RATIO", 10)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("name", ["root/train/cat/b.JPEG", "root/notes.txt"])
def test_a_bomb_is_refused_unpacked_to_no_more_than_the_limit(
    compress: Callable[[bytes], bytes], name: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.tgz"
    good = member(GOOD[0], b"image")
    path.write_bytes(compress(good + member(name, bytes(8 << 20)) + bytes(2 * BLOCK)))
    message = refusal(path, tmp_path)
    assert "bytes when unpacked, more than" in message
    assert (tmp_path / "inner/scratch").stat().st_size == len(b"image")


@pytest.mark.usefixtures("small_limits")
def test_a_bomb_of_many_small_members_or_of_zeros_at_the_end_is_refused(tmp_path: Path) -> None:
    ends = [member(GOOD[0], b"") * 20_000, bytes(8 << 20)]
    for end in ends:
        path = tmp_path / "a.tgz"
        path.write_bytes(gzip.compress(b"".join(member(name, b"image") for name in GOOD) + end))
        message = refusal(path, tmp_path)
        assert "bytes when unpacked, more than" in message


def test_images_that_honestly_pack_well_are_no_bomb(tmp_path: Path) -> None:
    path = packed(tmp_path, *(member(f"root/train/cat/{n}.ppm", bytes(3000)) for n in range(3000)))
    assert path.stat().st_size * archives.MAX_RATIO < 3000 * 3000
    assert len(paths_of(listed(path, tmp_path))) == 3002


def test_an_image_of_more_bytes_than_any_has_is_listed_but_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pipeline.sources.image", "pipeline.sources.folder"):
        monkeypatch.setattr(f"{module}.MAX_IMAGE_BYTES", 1000)
    source = listed(packed(tmp_path, member("root/train/cat/b.JPEG", bytes(1001))), tmp_path)
    assert (tmp_path / "scratch").stat().st_size == 2 * len(b"image")
    (big,) = (image for image in source.images["train"] if image.size == 1001)
    with pytest.raises(OSError, match="1001 bytes are more than 1000"):
        big.read()
    others = [image for images in source.images.values() for image in images if image is not big]
    assert [image.read() for image in others] == [b"image"] * 2


def test_an_archive_that_cannot_be_read_is_named_and_not_the_file_it_is_copied_to(
    srp_data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.tgz"
    path.symlink_to("/proc/self/mem")  # opens, and fails with EIO at its first byte
    result = srp_data("build-shards", path, tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: cannot access {path}: Input/output error. "
        "Check the disk and its cables, and run the same command again."
    )


def test_a_gzip_that_is_cut_or_flipped_anywhere_is_a_damaged_archive(tmp_path: Path) -> None:
    text = b"".join(b"%d " % number for number in range(20_000))  # which deflate compresses
    path = packed(tmp_path, member("root/train/cat/b.JPEG", text))
    good = path.read_bytes()
    for position in range(10, len(good), len(good) // 60):
        flipped = bytearray(good)
        flipped[position] ^= 0x10
        for data in (good[:position], bytes(flipped)):
            path.write_bytes(data)
            message = refusal(path, tmp_path)
            assert message.startswith("an archive must be a complete .tgz; got "), position
            assert "Download it again." in message
    path.write_bytes(good)
    assert len(paths_of(listed(path, tmp_path))) == 3


def test_a_disk_that_fills_up_names_the_file_that_images_are_copied_to(tmp_path: Path) -> None:
    for size in (1, 1 << 20):  # written when it is closed, and before
        path = packed(tmp_path, member("root/train/cat/b.JPEG", bytes(size)))
        scratch = tmp_path / f"out/{size}"
        scratch.parent.mkdir(exist_ok=True)
        scratch.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device") as caught:
            open_source(path, scratch=scratch)
        assert caught.value.filename == str(scratch)


def mended(data: bytes) -> bytes:
    """Give every header that is still one its right checksum."""
    tar = bytearray(data)
    for start in range(0, len(tar) - BLOCK + 1, BLOCK):
        block = tar[start : start + BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            tar[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()
    return bytes(tar)


KINDS = [bytes([kind]) for kind in b"01234567LKSxgXVD\0"]
NUMBERS = [b"\xff" * 12, b"\x80" + bytes(11), b"77777777777\0", b"-1".ljust(12), b"9" * 12]
CHANGE = st.one_of(
    st.tuples(st.just(156), st.sampled_from(KINDS)),
    st.tuples(st.just(124), st.sampled_from(NUMBERS)),
    st.tuples(
        st.sampled_from((0, 157, 345)), st.sampled_from((b"/", b"../", b"\0", b"\xff" * 100))
    ),
    st.tuples(st.integers(0, BLOCK - 100), st.binary(min_size=1, max_size=100)),
)
BASES = [SPARSE["1.0"], SPARSE["old"], pax(path="root/train/cat/" + "n" * 200, size="1"), b""]


@settings(max_examples=300)
@given(
    base=st.sampled_from(BASES),
    changes=st.lists(st.tuples(st.integers(0, 9), CHANGE), min_size=1, max_size=4),
    cut=st.integers(0, 2 * BLOCK),
)
def test_whatever_headers_say_an_archive_is_read_or_refused_in_one_line(
    base: bytes, changes: list[tuple[int, tuple[int, bytes]]], cut: int
) -> None:
    tar = bytearray(member(GOOD[0], b"image") + base + member(GOOD[1], b"image") + bytes(4 * BLOCK))
    for number, (at, value) in changes:
        start = number * BLOCK % len(tar) + at
        tar[start : start + len(value)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inner" / "a.tgz"
        path.parent.mkdir()
        path.write_bytes(mended(bytes(tar[: len(tar) - cut])))
        try:
            source = listed(path, path.parent)
        except SourceError as error:
            message = str(error)
        else:
            message = ""
            for image in (image for images in source.images.values() for image in images):
                assert len(image.read()) == image.size
        assert "\n" not in message
        assert set(Path(folder).rglob("*")) <= {path, path.parent, path.parent / "scratch"}
