import errno
import fcntl
import gc
import os
import pickle
import random
import shutil
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.format.sample import Sample
from pipeline.read.reader import ShardReader
from pipeline.stream.partition import Part
from pipeline.stream.store import LocalStore
from pipeline.stream.stream import SampleStream


def assert_equal(one: Sample, other: Sample) -> None:
    assert (one.key, one.label, one.meta) == (other.key, other.label, other.meta)
    np.testing.assert_array_equal(one.stacked(), other.stacked())


def stream_of(folder: Path, split: str = "train", **options: int) -> SampleStream:
    return SampleStream(folder, split, **options)  # type: ignore[arg-type]


def keys_of(stream: SampleStream, epoch: int = 0, **options: object) -> list[str]:
    return [sample.key for sample in stream.samples(epoch, **options)]  # type: ignore[arg-type]


def keys_in(manifest: Manifest, split: str) -> list[str]:
    return [sample.key for shard in manifest.of_split(split) for sample in shard.samples]


@pytest.fixture
def own(shards: Path, tmp_path: Path) -> tuple[Path, Manifest, ShardEntry]:
    """A folder of shards that a test may damage, and its first shard."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = manifests.load(folder)
    assert len(manifest.shards[0].samples) > 2
    assert len(manifest.of_split("train")) > 1
    return folder, manifest, manifest.shards[0]


Own = tuple[Path, Manifest, ShardEntry]


def read(own: Own) -> list[Sample]:
    """Stream the first shard alone."""
    folder, manifest, shard = own
    alone = replace(manifest, shards=(shard,))
    stream = SampleStream(LocalStore(folder=folder), shard.split, manifest=alone)
    return list(stream.samples())


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_streaming_without_a_shuffle_gives_the_samples_of_the_index_in_order(shards: Path) -> None:
    manifest = manifests.load(shards)
    for split in manifest.splits:
        reader = ShardReader(shards, manifest, manifest.of_split(split))
        streamed = list(stream_of(shards, split).samples())
        assert len(streamed) == len(reader)
        for index, sample in enumerate(streamed):
            assert_equal(sample, reader.read(index))


def test_a_shuffled_epoch_holds_the_same_samples_and_depends_on_seed_and_epoch(
    shards: Path,
) -> None:
    plain = keys_of(stream_of(shards))
    orders = [
        keys_of(stream_of(shards, seed=seed, shuffle_buffer=7), epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(sorted(order) == sorted(plain) for order in orders)
    assert all(one != other for i, one in enumerate(orders) for other in [plain, *orders[:i]])
    assert keys_of(stream_of(shards, seed=1, shuffle_buffer=7), 1) == orders[3]


def test_without_a_buffer_shards_are_shuffled_whole(shards: Path) -> None:
    manifest = manifests.load(shards)
    inside = [[sample.key for sample in shard.samples] for shard in manifest.of_split("train")]
    order = keys_of(stream_of(shards, seed=3))
    found = [keys for keys in inside if order[order.index(keys[0]) :][: len(keys)] == keys]
    assert found == inside
    assert order != keys_of(stream_of(shards))


@pytest.mark.parametrize("buffer", [0, 5])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 3), (2, 2), (4, 1), (4, 3)])
def test_ranks_and_workers_read_every_sample_once(
    canvas_shards: Path, world_size: int, num_workers: int, buffer: int
) -> None:
    stream = stream_of(canvas_shards, seed=0, shuffle_buffer=buffer)
    parts = [
        Part(rank=rank, world_size=world_size, worker=worker, num_workers=num_workers)
        for rank in range(world_size)
        for worker in range(num_workers)
    ]
    for epoch in (0, 1):
        read = [keys_of(stream, epoch, part=part) for part in parts]
        assert [len(keys) for keys in read] == [stream.count(part=part) for part in parts]
        assert sorted(key for keys in read for key in keys) == sorted(
            keys_in(stream.manifest, "train")
        )
        equal = [keys_of(stream, epoch, part=part, equal=True) for part in parts]
        flat = [key for keys in equal for key in keys]
        assert len(set(flat)) == len(flat) == 18 - 18 % world_size


def test_a_stream_never_ends_early_in_silence(own: Own) -> None:
    folder, _, shard = own
    extents = [next(sample.extents()) for sample in shard.samples]
    headers = [sample.offset + byte for sample in shard.samples for byte in range(0, 264, 7)]
    data = [extent.offset + byte for extent in extents for byte in (0, 9, 90, 200, extent.size - 1)]
    for position in [*headers, *data]:
        flip(folder / shard.name, position)
        at = max(sample.offset for sample in shard.samples if sample.offset <= position)
        with pytest.raises(VerificationError, match=rf"{shard.name} at offset {at} \(sample "):
            read(own)
        flip(folder / shard.name, position)
    assert len(read(own)) == len(shard.samples)


def test_what_follows_the_last_sample_is_checked(own: Own) -> None:
    folder, _, shard = own
    flip(folder / shard.name, shard.num_bytes - 700)
    pattern = rf"{shard.name} at offset {shard.num_bytes - 1024} \(its end\) in .*Run the same srp"
    with pytest.raises(VerificationError, match=pattern):
        read(own)


@pytest.mark.parametrize("length", [0, 1, 1024, -1024, -512, -1])
def test_a_cut_shard_is_an_error_with_shard_and_offset(length: int, own: Own) -> None:
    folder, _, shard = own
    length %= shard.num_bytes
    with (folder / shard.name).open("r+b") as file:
        file.truncate(length)
    pattern = rf"got {length} bytes, not {shard.num_bytes}, in .*{shard.name} \(broken from offset "
    with pytest.raises(VerificationError, match=pattern + rf"{length}, "):
        read(own)


def test_a_shard_of_whole_samples_but_too_few_is_an_error(own: Own) -> None:
    folder, _, shard = own
    path = folder / shard.name
    last = shard.samples[-1]
    data = path.read_bytes()
    path.write_bytes(data[: last.offset] + bytes(len(data) - last.offset))
    with pytest.raises(VerificationError, match=rf"offset {last.offset} \(sample {last.key}\)"):
        read(own)


def test_another_shard_under_the_name_is_an_error(own: Own) -> None:
    folder, _, shard = own
    path = folder / shard.name
    one, two = shard.samples[:2]
    data = path.read_bytes()
    swapped = data[two.offset :][: two.length] + data[one.offset :][: one.length]
    path.write_bytes(swapped + data[len(swapped) :])
    with pytest.raises(VerificationError, match=rf"{shard.name} at offset 0 "):
        read(own)


def test_members_of_other_names_are_an_error_even_if_the_manifest_has_their_checksum(
    own: Own,
) -> None:
    folder, manifest, shard = own
    path = folder / shard.name
    first = shard.samples[0]
    data = path.read_bytes()
    stretch = data[: first.length].replace(b".cls\0", b".pkl\0", 1)
    path.write_bytes(stretch + data[first.length :])
    samples = (replace(first, crc32=zlib.crc32(stretch)), *shard.samples[1:])
    with pytest.raises(VerificationError, match=rf"{shard.name} at offset 0 \(sample {first.key}"):
        read((folder, manifest, replace(shard, samples=samples)))


def test_a_missing_shard_is_an_error_with_the_fix(own: Own) -> None:
    folder, _, shard = own
    (folder / shard.name).unlink()
    with pytest.raises(VerificationError, match=rf"none at .*{shard.name}\. Run the same srp-data"):
        read(own)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_local_stream_needs_no_locks(
    number: int, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: object, _how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    stream = stream_of(shards)
    assert keys_of(stream) == keys_in(stream.manifest, "train")


def test_a_stream_needs_no_parser_of_tars(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("webdataset", "tarfile"):
        monkeypatch.setitem(sys.modules, name, None)
    stream = stream_of(shards, seed=0, shuffle_buffer=4)
    assert sorted(keys_of(stream)) == sorted(keys_in(stream.manifest, "train"))


@pytest.mark.parametrize("size", [1, 2, 7, 18, 40])
def test_the_buffer_draws_as_webdatasets_does_once_it_is_full(
    size: int, canvas_shards: Path
) -> None:
    plain = keys_of(stream_of(canvas_shards, seed=3))
    state = np.random.SeedSequence((3, 0, 0)).generate_state(4).tobytes()
    theirs = webdataset.shuffle(size, initial=size, rng=random.Random(state))
    expected = list(theirs(iter(plain)))
    assert keys_of(stream_of(canvas_shards, seed=3, shuffle_buffer=size)) == expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_in_a_webdataset_pipeline_every_layout_gives_what_webdataset_decodes_of_tensors(
    shards: Path, tensor_shards: Path
) -> None:
    urls = sorted(str(path) for path in tensor_shards.glob("train-*.tar"))
    expected = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    found = list(webdataset.DataPipeline(stream_of(shards)))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        theirs.pop("__local_path__")
        assert ours.keys() == theirs.keys()
        assert ours.pop("__url__").startswith(f"{shards}/train-")
        theirs.pop("__url__")
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    gc.collect()  # the webdataset library leaves its files to the collector, which warns


def test_each_pass_of_a_pipeline_is_the_next_epoch(canvas_shards: Path) -> None:
    stream = stream_of(canvas_shards, seed=0, shuffle_buffer=4)
    pipeline = webdataset.DataPipeline(stream, webdataset.to_tuple("__key__"))
    passes = [[key for (key,) in pipeline] for _ in range(2)]
    assert passes == [keys_of(stream, 0), keys_of(stream, 1)]
    stream.epoch = 1
    assert [key for (key,) in pipeline] == passes[1]
    assert [key for (key,) in pickle.loads(pickle.dumps(pipeline))] == keys_of(stream, 2)  # noqa: S301


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_rank_and_worker_of_a_pipeline_reads_its_own_part(
    world_size: int, canvas_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    stages = (webdataset.shuffle(5), webdataset.to_tuple("__key__"), webdataset.batched(4))
    pipeline = webdataset.DataPipeline(stream_of(canvas_shards, seed=0), *stages)
    keys: list[str] = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=2)
        keys += [key for (batch,) in loader for key in batch]
    assert sorted(keys) == sorted(keys_in(manifests.load(canvas_shards), "train"))


def test_a_damaged_shard_ends_a_pipeline_in_an_error_that_names_it(own: Own) -> None:
    folder, _, shard = own
    flip(folder / shard.name, shard.samples[1].offset + 900)
    stages = (webdataset.shuffle(5), webdataset.to_tuple("cls"))
    with pytest.raises(VerificationError, match=rf"{shard.name} at offset .*Run the same srp-data"):
        list(webdataset.DataPipeline(stream_of(folder), *stages))


def test_a_stream_that_is_left_early_ends_its_thread_and_closes_its_files(shards: Path) -> None:
    samples = stream_of(shards, seed=0, shuffle_buffer=4).samples()
    next(samples)
    samples.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("srp-stream")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"got 0 in test of .*\. It has train, val\."),
        ({"shuffle_buffer": -1, "seed": 0}, r"0 or more samples, and needs a seed; got -1 samples"),
        ({"shuffle_buffer": 9}, r"needs a seed; got 9 samples, seed None\. Give a seed, or no"),
        ({"seed": -1}, r"a seed must be at least 0; got -1\."),
    ],
)
def test_a_stream_that_cannot_work_is_refused(
    options: dict[str, object], message: str, canvas_shards: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        stream_of(canvas_shards, **options)  # type: ignore[arg-type]
