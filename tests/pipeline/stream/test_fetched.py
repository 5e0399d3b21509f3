"""Shards of an address, read by index from the cache: as local ones, and never a hang."""

import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from served import Web, announce_less, hang_up, interrupt_and_fall_silent, size_of

from pipeline.common.errors import DownloadError, VerificationError
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.reader import ShardReader
from pipeline.remote.pace import START_AT_ONCE
from pipeline.stream import fetched as fetched_module
from pipeline.stream.fetched import FetchedShards
from pipeline.stream.folder import ShardFolder

MIB = 2**20
ORDER = np.random.default_rng(5).permutation(18)[:16].reshape(-1, 2)  # each batch of many shards


@pytest.fixture
def many(image_tree: Path, make_shards: Callable[..., object], tmp_path: Path, web: Web) -> Web:
    """Eighteen training samples in six shards or more, on the web server."""
    out = tmp_path / "many"
    make_shards(image_tree, out, layout="tensors", candidates="five", shard_mib=1)
    web.folder = out
    return web


def opened(web: Web, cache: Path, cache_mib: int | None = None) -> ShardFolder:
    return ShardFolder.open(web.address, cache=cache, cache_mib=cache_mib)


def loader(reader: ShardReader, workers: int = 2) -> BatchLoader:
    spec = BatchSpec(candidates=(0, 4), glimpse_px=16)
    return BatchLoader(reader, spec, workers=workers)


def all_bytes(reader: ShardReader, order: np.ndarray = ORDER, workers: int = 2) -> list[bytes]:
    return [
        b"".join(array.tobytes() for array in batch.arrays if array is not None)
        for batch in loader(reader, workers).batches(order)
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_of_an_address_are_those_of_the_folder(
    many: Web, tmp_path: Path, workers: int
) -> None:
    local = ShardFolder.open(many.folder)
    remote = opened(many, tmp_path / "cache")
    assert len(local.manifest.of_split("train")) >= 4
    for split in ("train", "val"):
        order = ORDER if split == "train" else np.arange(9)[:, None]
        expected = all_bytes(local.reader(split), order)
        assert all_bytes(remote.reader(split), order, workers) == expected
    for shard in local.manifest.shards:
        assert many.asked_for(shard.name) == [""]


def test_shards_are_fetched_in_the_order_of_first_need_and_a_few_at_once(
    many: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched_module, "MAX_AT_ONCE", 1)
    reader = opened(many, tmp_path / "cache").reader("train")
    all_bytes(reader)
    needed = dict.fromkeys(reader.shards_of(ORDER.ravel()).tolist())
    names = [reader._shards[number].name for number in needed]
    assert [name for name, _ in many.requests if name.startswith("train")] == names


def test_what_the_next_batch_waits_for_is_fetched_at_once_and_the_wait_is_counted(
    many: Web, tmp_path: Path
) -> None:
    reader = opened(many, tmp_path / "cache").reader("train")
    num_shards = len(reader._shards)
    assert num_shards > START_AT_ONCE
    assert (reader.mapped.waited_s, reader.mapped.fetched_bytes) == (0, 0)
    many.requests.clear()
    many.all_wait = threading.Barrier(num_shards)  # none is answered before all have been asked for
    everything = [np.arange(18)] * 2
    assert all_bytes(reader, everything, workers=1)
    num_bytes = sum(shard.num_bytes for shard in reader._shards)
    assert reader.mapped.fetched_bytes == num_bytes
    waited_s = reader.mapped.waited_s
    assert waited_s > 0
    all_bytes(reader, everything)
    assert reader.mapped.waited_s == waited_s  # all are here
    local = ShardFolder.open(many.folder).reader("train").mapped
    assert (local.waited_s, local.fetched_bytes) == (0, 0)


def test_a_limit_holds_while_every_shard_is_read(many: Web, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shards = opened(many, cache, 3)
    reader = shards.reader("train")
    in_order = np.arange(18)[:, None]
    sizes, total = [], sum(shard.num_bytes for shard in shards.manifest.of_split("train"))
    expected = all_bytes(ShardFolder.open(many.folder).reader("train"), in_order)
    for _ in range(2):
        seen = []
        for batch in loader(reader).batches(in_order):
            seen.append(b"".join(array.tobytes() for array in batch.arrays if array is not None))
            sizes.append(size_of(cache))
        assert seen == expected
    assert max(sizes) <= 3 * MIB < total
    assert reader.mapped.num_unmapped == len(shards.manifest.of_split("train"))


def test_a_batch_may_need_more_than_the_limit(many: Web, tmp_path: Path) -> None:
    everything = [np.arange(18)]
    expected = all_bytes(ShardFolder.open(many.folder).reader("train"), everything)
    assert all_bytes(opened(many, tmp_path, 3).reader("train"), everything) == expected


def test_a_sample_read_by_itself_is_that_of_the_folder_and_stays(many: Web, tmp_path: Path) -> None:
    local, remote = (
        folder.reader("train")
        for folder in (ShardFolder.open(many.folder), opened(many, tmp_path / "cache", 3))
    )
    read = [remote.read(index) for index in range(len(remote))]  # views, though shards leave
    for index, sample in enumerate(read):
        expected = local.read(index)
        assert sample.key == expected.key
        assert np.array_equal(sample.originals, expected.originals)


@pytest.mark.parametrize("fault", [hang_up, announce_less])
def test_a_fault_passes_or_is_an_error_that_names_the_shard(
    fault: Callable[..., None], many: Web, tmp_path: Path
) -> None:
    many.faults = [fault]
    reader = opened(many, tmp_path / "cache").reader("train")
    if fault is hang_up:
        assert all_bytes(reader) == all_bytes(ShardFolder.open(many.folder).reader("train"))
        return
    with pytest.raises(VerificationError, match=rf"in {many.address}/train-000000\.tar \(broken"):
        all_bytes(reader)


def test_a_server_that_goes_away_ends_the_reading_and_its_return_lets_it_go_on(
    many: Web, tmp_path: Path
) -> None:
    reader = opened(many, tmp_path / "cache").reader("train")
    many.is_gone = True
    with pytest.raises(DownloadError, match=rf"shards must be reachable; .* from {many.address}"):
        all_bytes(reader)
    many.is_gone = False
    assert all_bytes(reader) == all_bytes(ShardFolder.open(many.folder).reader("train"))


def test_an_interrupted_reading_does_not_wait_for_a_silent_server(
    many: Web, tmp_path: Path
) -> None:
    silent = threading.Event()
    many.faults = [partial(interrupt_and_fall_silent, number=signal.SIGINT, until=silent)]
    reader = opened(many, tmp_path / "cache").reader("train")
    with pytest.raises(KeyboardInterrupt):
        all_bytes(reader)
    readers = [each for each in threading.enumerate() if each.name.startswith("srp-read")]
    for each in readers:  # one may be left that was just being started: its pool does not know it
        each.join(10)
        assert not each.is_alive()
    silent.set()
    assert all_bytes(reader) == all_bytes(ShardFolder.open(many.folder).reader("train"))


def test_who_waits_for_a_shard_is_told_that_the_reading_has_ended(
    many: Web, tmp_path: Path
) -> None:
    reader = opened(many, tmp_path / "cache").reader("train")
    many.waits.clear()
    with ThreadPoolExecutor(1) as pool:
        with reader.mapped.ahead([np.array([0])]) as ahead:
            waiting = pool.submit(ahead.wait, np.array([0]))
        with pytest.raises(CancelledError):
            waiting.result()
    many.waits.set()


def test_a_shard_that_was_removed_or_cut_in_the_cache_is_fetched_again(
    many: Web, tmp_path: Path
) -> None:
    shards = opened(many, tmp_path)
    expected = all_bytes(shards.reader("train"))
    first, second = (tmp_path / f"{s.sha256}.tar" for s in shards.manifest.of_split("train")[:2])
    first.unlink()
    os.truncate(second, 700)
    assert all_bytes(shards.reader("train")) == expected
    reader = shards.reader("train")
    all_bytes(reader)
    first.unlink()  # what is mapped stays
    os.truncate(second, 700)
    assert all_bytes(reader) == expected


def test_bytes_of_the_cache_that_changed_are_an_error_with_the_fix(
    many: Web, tmp_path: Path
) -> None:
    shards = opened(many, tmp_path)
    all_bytes(shards.reader("train"))
    shard = shards.manifest.of_split("train")[0]
    path = tmp_path / f"{shard.sha256}.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=rf"{shard.name} at .*\. Remove {path} and run the"):
        all_bytes(shards.reader("train"), np.arange(18)[:, None])


def test_a_sample_is_not_checked_again_because_its_shard_was_used(
    many: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened(many, tmp_path, 3).reader("train")
    in_order = np.arange(18)[:, None]
    all_bytes(reader, in_order)
    all_bytes(opened(many, tmp_path).reader("train"), in_order)  # all are in the cache now
    all_bytes(reader, in_order)
    monkeypatch.setattr(ShardReader, "_check_members", lambda *_: pytest.fail("checked again"))
    all_bytes(reader, in_order)


def test_a_mapped_shard_is_not_removed_to_make_room(many: Web, tmp_path: Path) -> None:
    shards = opened(many, tmp_path, 3)
    pixels = shards.reader("train").read(0)
    kept = tmp_path / f"{shards.manifest.of_split('train')[0].sha256}.tar"
    all_bytes(shards.reader("train"), np.arange(3, 18)[:, None])
    assert kept.exists()
    del pixels
    all_bytes(shards.reader("train"), np.arange(3, 18)[:, None])
    assert not kept.exists()


def test_a_reader_can_be_sent_to_another_process(many: Web, tmp_path: Path) -> None:
    reader = opened(many, tmp_path / "cache").reader("train")
    all_bytes(reader)
    many.is_gone = True  # the cache has it all
    sent = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own, as a DataLoader sends it
    assert isinstance(sent.mapped, FetchedShards)
    assert all_bytes(sent) == all_bytes(reader)
    shutil.rmtree(tmp_path / "cache")
