import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.build.shard_writer import SMALL, EncodedSample, sha256_of, write_shard
from pipeline.format.sample import PlannedShard

SPEC = PlannedShard(split="train", index=3, keys=("a", "c/b", "d"))
SAMPLES = [
    EncodedSample("a", 0, {"x.npy": (b"head", memoryview(b"x" * 700)), "cls": (b"0",)}),
    EncodedSample("c/b", 1, {"x.npy": (b"",), "cls": (b"1",)}),
    EncodedSample("d", 1, {"x.npy": (b"h", memoryview(b"y" * SMALL)), "cls": (b"1",)}),
]


def test_the_record_is_of_the_very_bytes_in_the_file(tmp_path: Path) -> None:
    record = write_shard(tmp_path, SPEC, SAMPLES, suffixes=("x.npy", "cls"))
    data = (tmp_path / "train-000003.tar").read_bytes()
    assert record.num_bytes == len(data)
    assert record.sha256 == hashlib.sha256(data).hexdigest() == sha256_of(tmp_path / record.name)
    for sample, written in zip(record.samples, SAMPLES, strict=True):
        assert zlib.crc32(data[sample.offset :][: sample.length]) == sample.crc32
        extents = sample.extents()
        for member in written.members.values():
            extent = next(extents)
            assert data[extent.offset :][: extent.size] == b"".join(member)


def test_a_shard_is_a_plain_tar_with_fixed_metadata(tmp_path: Path) -> None:
    write_shard(tmp_path, SPEC, SAMPLES, suffixes=("x.npy", "cls"))
    with tarfile.open(tmp_path / SPEC.name, "r:") as tar:
        members = tar.getmembers()
        assert [info.name for info in members] == [
            f"{sample.key}.{suffix}" for sample in SAMPLES for suffix in ("x.npy", "cls")
        ]
        for info in members:
            assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
            assert (info.uname, info.gname, info.pax_headers) == ("", "", {})
            assert info.isreg()
        file = tar.extractfile("a.x.npy")
        assert isinstance(file, io.BufferedReader)
        assert file.read() == b"head" + b"x" * 700


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    assert write_shard(tmp_path, SPEC, SAMPLES, suffixes=("x.npy", "cls")) == write_shard(
        tmp_path, SPEC, iter(SAMPLES), suffixes=("x.npy", "cls")
    )


def test_a_shard_without_samples_is_a_whole_tar(tmp_path: Path) -> None:
    record = write_shard(tmp_path, SPEC, [], suffixes=("x.npy", "cls"))
    assert (record.num_bytes, tuple(record.samples)) == (1024, ())
    with tarfile.open(tmp_path / SPEC.name) as tar:
        assert tar.getmembers() == []


def test_a_shard_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Iterator[EncodedSample]:
        yield SAMPLES[0]
        assert not (tmp_path / SPEC.name).exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, SPEC, fail(), suffixes=("x.npy", "cls"))
    assert list(tmp_path.iterdir()) == []
