"""A shard that is cut or flipped, anywhere: shard, offset and sample are named, nothing is lost."""

import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline.build import build
from pipeline.config import BuildConfig
from pipeline.errors import VerificationError
from pipeline.fill import Content
from pipeline.loader import Loader
from pipeline.manifest import Manifest
from pipeline.reader import IndexedReader
from pipeline.scenes import draw_dataset
from pipeline.shard import ShardRecord
from pipeline.store import open_store
from pipeline.stream import Stream
from pipeline.tar import TAR_BLOCK, TAR_END
from pipeline.verify import verify

KINDS = ("canvas-raw", "canvas-zstd", "tensors-raw")
Read = Callable[[Path, Manifest, ShardRecord], list[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "images"
    draw_dataset(folder, train=1, val=1, size_px=32)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def whole(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    layout, codec = request.param.split("-")
    out = tmp_path_factory.mktemp("faults") / "shards"
    config = BuildConfig(
        source=images, out=out, canvas_size=24, crop_size=16, glimpse_size=8, layout=layout,
        codec=codec, workers=1, limit=4,
    )  # fmt: skip
    build(config, on_progress=lambda _stage, _done, _total: None)
    return out


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> tuple[Path, Manifest, ShardRecord, bytes]:
    folder = shutil.copytree(whole, tmp_path / "shards")
    manifest = manifests.load(folder)
    (shard,) = manifest.of_split("train")
    assert len(shard.samples) > 3
    return folder, manifest, shard, (folder / shard.name).read_bytes()


def by_verify(folder: Path, manifest: Manifest, _shard: ShardRecord) -> list[str]:
    verify(folder, workers=1, on_progress=lambda _done, _total: None)
    return [key for shard in manifest.of_split("train") for key in shard.samples.keys]


def by_index(folder: Path, manifest: Manifest, shard: ShardRecord) -> list[str]:
    reader = IndexedReader(folder, manifest, [shard])
    return [reader.read(index).key for index in range(len(reader))]


def by_stream(folder: Path, manifest: Manifest, shard: ShardRecord) -> list[str]:
    stream = Stream(store=open_store(folder), manifest=manifest, split=shard.split)
    return [sample.key for sample in stream.samples()]


def by_loader(folder: Path, manifest: Manifest, shard: ShardRecord) -> list[str]:
    reader = IndexedReader(folder, manifest, [shard])
    content = Content(candidates=(0, 2), looked_at=(0, 1), glimpse_px=8, crops=True)
    loader = Loader(reader, content, workers=1)
    keys = reader.keys
    batches = loader.batches([np.array([index]) for index in range(len(reader))])
    return [keys[int(batch.indices_B[0])] for batch in batches]


READERS = (by_verify, by_index, by_stream, by_loader)


def cuts(data: bytes) -> Iterator[int]:
    return iter(range(0, len(data), TAR_BLOCK))


@pytest.mark.parametrize("read", READERS)
def test_a_shard_that_is_cut_at_any_block_is_named_with_offset_and_sample(
    read: Read, own: tuple[Path, Manifest, ShardRecord, bytes]
) -> None:
    folder, manifest, shard, data = own
    assert read(folder, manifest, shard) == list(shard.samples.keys)
    for length in cuts(data):
        (folder / shard.name).write_bytes(data[:length])
        with pytest.raises(VerificationError) as caught:
            read(folder, manifest, shard)
        at = [record.key for record in shard.samples if record.offset <= length][-1]
        inside = length < len(data) - len(TAR_END)
        told = f"sample {at}" if inside else "past its samples"
        assert f"{shard.name} (broken from offset {length}, {told})" in str(caught.value)
        assert caught.value.exit_status == 3


def test_a_plain_tar_reader_loses_samples_of_most_cuts_without_a_word(
    own: tuple[Path, Manifest, ShardRecord, bytes],
) -> None:
    folder, _, shard, data = own
    silent = 0
    for length in cuts(data):
        (folder / shard.name).write_bytes(data[:length])
        try:
            with tarfile.open(folder / shard.name, "r|") as tar:
                found = {member.name.partition(".")[0] for member in tar}
            silent += len(found) < len(shard.samples)
        except tarfile.ReadError:
            pass
    assert silent > 0


@pytest.mark.parametrize("read", READERS)
def test_a_bit_that_flips_in_any_block_is_named_with_offset_and_sample(
    read: Read, own: tuple[Path, Manifest, ShardRecord, bytes]
) -> None:
    folder, manifest, shard, data = own
    rng = np.random.default_rng(0)
    end = len(data) - len(TAR_END)
    for start in cuts(data):
        position = start + int(rng.integers(TAR_BLOCK))
        flipped = bytes([data[position] ^ 1 << int(rng.integers(8))])
        (folder / shard.name).write_bytes(data[:position] + flipped + data[position + 1 :])
        if position >= end and read is not by_verify:
            continue  # the tar's end is in no sample
        with pytest.raises(VerificationError) as caught:
            read(folder, manifest, shard)
        if position < end:
            (hit,) = [r for r in shard.samples if r.offset <= position < r.offset + r.length]
            place = f"{shard.name} at offset {hit.offset} (sample {hit.key})"
        else:
            place = f"{shard.name}, whose samples are whole (its end, from offset {end}"
        assert place in str(caught.value)


@pytest.mark.parametrize("read", [by_index, by_loader])
def test_the_other_samples_of_a_flipped_shard_are_still_there(
    read: Read, own: tuple[Path, Manifest, ShardRecord, bytes]
) -> None:
    folder, manifest, shard, data = own
    hit = shard.samples[1]
    position = hit.offset + hit.length - 1
    (folder / shard.name).write_bytes(
        data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    )
    reader = IndexedReader(folder, manifest, [shard])
    for index, record in enumerate(shard.samples):
        if record.key != hit.key:
            assert reader.read(index).key == record.key
            assert len(reader.locate([index]).shards_B) == 1
    with pytest.raises(VerificationError, match=hit.key):
        read(folder, manifest, shard)


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "gone"])
def test_a_shard_that_is_damaged_while_it_is_read_is_named_at_the_next_sample(
    damage: str, own: tuple[Path, Manifest, ShardRecord, bytes]
) -> None:
    folder, manifest, shard, data = own
    path = folder / shard.name
    reader = IndexedReader(folder, manifest, [shard])
    rows = list(range(len(reader)))
    reader.locate(rows)  # all are mapped and found whole
    if damage == "flipped":
        with path.open("r+b") as file:
            file.seek(shard.samples[2].offset + 600)
            file.write(bytes([data[shard.samples[2].offset + 600] ^ 8]))
    elif damage == "gone":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(0 if damage == "emptied" else len(data) // 2)
    with pytest.raises(VerificationError, match=shard.name):
        reader.locate(rows)
    with pytest.raises(VerificationError, match=shard.name):
        reader.read(2)


def test_a_look_at_another_sample_hides_no_damage(
    own: tuple[Path, Manifest, ShardRecord, bytes],
) -> None:
    folder, manifest, shard, data = own
    reader = IndexedReader(folder, manifest, [shard])
    reader.locate([2])
    position = shard.samples[2].offset + 600
    with (folder / shard.name).open("r+b") as file:
        file.seek(position)
        file.write(bytes([data[position] ^ 8]))
    reader.read(0)
    with pytest.raises(VerificationError, match=shard.samples[2].key):
        reader.locate([2])
