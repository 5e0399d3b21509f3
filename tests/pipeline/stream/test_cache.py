import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline.common.atomic_io import atomic_write
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.index import ShardEntry
from pipeline.stream import cache as caches
from pipeline.stream.cache import Fetch, ShardCache, release
from pipeline.stream.store import open_store

MIB = 2**20


def shard_of(data: bytes, name: str = "train-000000.tar") -> ShardEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    return ShardEntry(name=name, split="train", num_bytes=len(data), sha256=sha256, samples=())


def giving(*chunks: bytes) -> Fetch:
    """Be a store that gives these bytes each time."""

    def fetch() -> Generator[bytes, None, None]:
        yield from chunks

    return fetch


def put(cache: ShardCache, data: bytes) -> Path:
    """Fetch a shard and let it go."""
    shard = shard_of(data)
    release(cache.open(shard, fetch=giving(data), address="a", stop=threading.Event()))
    return cache.path_of(shard)


def never() -> Generator[bytes, None, None]:
    raise AssertionError("the store was asked")
    yield b""


def test_a_kept_shard_is_used_again_without_the_store(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path / "deep/cache")
    put(cache, b"abc")
    file = cache.open(shard_of(b"abc"), fetch=never, address="a", stop=threading.Event())
    assert file.read() == b"abc"
    release(file)


@pytest.mark.parametrize("data", [b"", b"ab", b"abd", b"abcd"])
def test_bytes_that_are_not_the_shard_are_not_kept(data: bytes, tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path)
    with pytest.raises(VerificationError, match=rf"3 bytes of sha256 .*; got {len(data)} bytes of"):
        cache.open(
            shard_of(b"abc"), fetch=giving(data), address="http://h/a", stop=threading.Event()
        )
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    put(cache, b"abc")


def test_a_kept_shard_that_was_cut_is_fetched_again(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path)
    path = put(cache, b"abc")
    path.write_bytes(b"ab")
    assert put(cache, b"abc").read_bytes() == b"abc"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path)
    left = tmp_path / f".{shard_of(b'abc').sha256}.tar.99.partial"
    left.write_bytes(b"a")
    put(cache, b"abc")
    assert not left.exists()


def test_threads_that_want_the_same_shard_fetch_it_once(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path)
    fetches = []

    def fetch() -> Generator[bytes, None, None]:
        fetches.append(1)
        yield b"a"
        yield b"bc"

    def read(_: int) -> bytes:
        file = cache.open(shard_of(b"abc"), fetch=fetch, address="a", stop=threading.Event())
        data = file.read()
        release(file)
        return data

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(8))) == [b"abc"] * 8
    assert len(fetches) == 1


def test_a_reader_that_fails_leaves_the_next_one_to_try(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path)

    def fetch() -> Generator[bytes, None, None]:
        yield b"a"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.open(shard_of(b"abc"), fetch=fetch, address="a", stop=threading.Event())
    put(cache, b"abc")


@pytest.fixture
def removed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another process make room, once, right after a fetched shard got its name."""

    @contextlib.contextmanager
    def write_and_lose(path: Path, **options: int) -> Iterator[BinaryIO]:
        monkeypatch.setattr(caches, "atomic_write", atomic_write)
        with atomic_write(path, **options) as file:
            yield file
        assert caches._remove_unused(path)

    monkeypatch.setattr(caches, "atomic_write", write_and_lose)


@pytest.mark.usefixtures("removed_once")
def test_a_shard_that_is_removed_before_it_is_open_is_fetched_anew(tmp_path: Path) -> None:
    assert put(ShardCache(folder=tmp_path), b"abc").read_bytes() == b"abc"


@pytest.mark.usefixtures("removed_once")
def test_a_shard_that_is_removed_before_it_is_open_comes_from_the_server_again(
    web: Any, tmp_path: Path
) -> None:
    store = open_store(web.address, cache=tmp_path / "cache")
    shard = store.load_manifest().shards[0]
    with contextlib.closing(store.open(shard, start=512, stop=threading.Event())) as source:
        data = source.read(shard.num_bytes)
    assert data == (web.folder / shard.name).read_bytes()[512:]
    assert web.asked_for(shard.name) == ["", ""]


def test_a_reader_that_waits_can_be_stopped(tmp_path: Path) -> None:
    cache, shard, stop = ShardCache(folder=tmp_path), shard_of(b"abc"), threading.Event()
    with (tmp_path / f".{shard.sha256}.lock").open("wb") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = pool.submit(cache.open, shard, fetch=never, address="a", stop=stop)
        stop.set()
        with pytest.raises(CancelledError):
            waiting.result()


def test_the_shard_that_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path, limit_mib=3)
    other = tmp_path / "notes.tar"
    other.write_bytes(bytes(9 * MIB))
    paths = [put(cache, bytes([number]) * MIB) for number in range(3)]
    for age, path in enumerate(paths):
        os.utime(path, ns=(age, age))
    put(cache, bytes([0]) * MIB)  # used again
    put(cache, bytes([3]) * MIB)
    assert [path.exists() for path in paths] == [True, False, True]
    assert other.exists()  # whatever is no shard of the cache is left alone


def test_a_shard_in_use_stays_even_if_the_cache_is_too_small(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path, limit_mib=1)
    data = bytes(MIB)
    file = cache.open(shard_of(data), fetch=giving(data), address="a", stop=threading.Event())
    later = put(cache, b"1" * MIB)
    assert cache.path_of(shard_of(data)).exists()
    assert later.exists()
    release(file)
    put(cache, b"2" * MIB)
    assert not cache.path_of(shard_of(data)).exists()
    assert not later.exists()


def test_what_other_threads_fetch_meanwhile_has_its_room(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path, limit_mib=2)
    before = put(cache, bytes(MIB))
    barrier = threading.Barrier(2)

    def fetch_together(number: int) -> Path:
        data = bytes([number]) * MIB

        def fetch() -> Generator[bytes, None, None]:
            barrier.wait()  # both have begun
            yield data

        shard = shard_of(data)
        release(cache.open(shard, fetch=fetch, address="a", stop=threading.Event()))
        return cache.path_of(shard)

    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(fetch_together, (1, 2)))
    assert [path.exists() for path in (before, *paths)] == [False, True, True]


def test_the_bytes_of_a_shard_keep_their_time_when_it_is_used(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path)
    path = put(cache, b"abc")
    os.utime(path, ns=(5, 7))
    put(cache, b"abc")
    assert path.stat().st_mtime_ns == 7
    assert path.stat().st_atime_ns > 5


def test_a_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path) -> None:
    cache = ShardCache(folder=tmp_path / "cache")
    shard = ShardEntry(name="a.tar", split="train", num_bytes=3, sha256="../../escaped", samples=())
    with pytest.raises(VerificationError, match=r"64 hex digits; got '\.\./\.\./escaped' for a"):
        cache.open(shard, fetch=giving(b"abc"), address="a", stop=threading.Event())
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at least 1 MiB; got 0\."):
        ShardCache(folder=tmp_path, limit_mib=0)
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"must be a folder; got the file .*file\. Name another folder\."
    ):
        ShardCache(folder=tmp_path / "file")


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_cache_in_a_file_system_without_locks_is_refused_in_one_line(
    is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    cache = ShardCache(folder=tmp_path)
    path = put(cache, b"abc") if is_kept else tmp_path / f".{shard_of(b'abc').sha256}.lock"
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError) as caught:
        put(cache, b"abc")
    assert str(caught.value) == (
        f"a cache must be in a file system with locks; got No locks available for {path}. "
        "Name a folder on a disk of this machine, or read without a cache."
    )
