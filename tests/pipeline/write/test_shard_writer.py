import errno
import hashlib
import io
import os
import tarfile
import threading
import zlib
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from pipeline.format.sample import PlannedShard
from pipeline.write import shard_writer
from pipeline.write.shard_writer import SMALL, EncodedSample, sha256_of, write_shard

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


def test_samples_are_written_by_another_thread_and_few_of_them_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_taken, writers, waiting = 0, set(), []
    append = shard_writer._Tar.append

    def note_and_append(tar: shard_writer._Tar, sample: EncodedSample) -> None:
        writers.add(threading.current_thread())
        append(tar, sample)
        waiting.append(num_taken - len(tar.entries))

    def samples() -> Iterator[EncodedSample]:
        nonlocal num_taken
        for num_taken in range(1, 101):
            yield EncodedSample(f"{num_taken}", 0, {"x": (bytes(1000),)})

    monkeypatch.setattr(shard_writer, "AHEAD_BYTES", 5000)
    monkeypatch.setattr(shard_writer._Tar, "append", note_and_append)
    record = write_shard(tmp_path, SPEC, samples(), suffixes=("x",))
    assert [sample.key for sample in record.samples] == [f"{number}" for number in range(1, 101)]
    assert len(writers) == 1
    assert threading.current_thread() not in writers
    assert max(waiting) <= 6, "5 of 1,000 bytes wait, and one is being made"


def test_a_disk_that_takes_no_more_stops_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_writer, "AHEAD_BYTES", 5000)
    monkeypatch.setattr(shard_writer._Tar, "append", fail)
    with pytest.raises(OSError, match=r"No space left on device \(needs about 7 bytes\)") as caught:
        write_shard(tmp_path, SPEC, repeat(SAMPLES[0]), suffixes=("x.npy", "cls"), num_bytes=7)
    assert caught.value.filename == str(tmp_path / SPEC.name)
    assert list(tmp_path.iterdir()) == []


def test_a_long_shard_is_synced_as_it_grows_and_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes_at_syncs(name: str) -> list[int]:
        sizes: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
        write_shard(tmp_path / name, SPEC, SAMPLES, suffixes=("x.npy", "cls"))
        return sizes

    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    assert sizes_at_syncs("short") == [(tmp_path / "short" / SPEC.name).stat().st_size]
    monkeypatch.setattr(shard_writer, "SYNC_BYTES", 2000)
    assert sizes_at_syncs("long") == [2560, 71680, 72704]
    assert sha256_of(tmp_path / "short" / SPEC.name) == sha256_of(tmp_path / "long" / SPEC.name)
