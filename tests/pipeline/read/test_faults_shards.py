"""A shard that is cut or flipped, anywhere: shard, offset and sample are named, nothing is lost."""

import itertools
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.build.build import build_shards
from pipeline.build.config import BuildConfig
from pipeline.common.errors import VerificationError
from pipeline.datasets.config import SceneConfig
from pipeline.datasets.scenes import draw_dataset
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.format.ustar import TAR_BLOCK, TAR_END
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.reader import ShardReader
from pipeline.stream.stream import SampleStream
from pipeline.verify.verify import verify_shards

KINDS = ("canvas-raw", "canvas-zstd", "tensors-raw")
Read = Callable[[Path, Manifest, ShardEntry], list[str]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "images"
    draw_dataset(SceneConfig(out=folder, train=1, val=1, size_px=32))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def whole(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("faults") / "shards"
    build_small(images, out, request.param)
    return out


def build_small(images: Path, out: Path, kind: str, **options: int) -> Manifest:
    layout, codec = kind.split("-")
    config = BuildConfig(
        source=images, out=out, crop_size=16, glimpse_size=8, layout=layout, codec=codec,
        workers=1, limit=4, **{"canvas_size": 24, **options},
    )  # fmt: skip
    return build_shards(config).manifest


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> tuple[Path, Manifest, ShardEntry, bytes]:
    folder = shutil.copytree(whole, tmp_path / "shards")
    manifest = manifests.load(folder)
    (shard,) = manifest.of_split("train")
    assert len(shard.samples) > 3
    return folder, manifest, shard, (folder / shard.name).read_bytes()


def by_verify(folder: Path, manifest: Manifest, _shard: ShardEntry) -> list[str]:
    verify_shards(folder, workers=1)
    return [key for shard in manifest.of_split("train") for key in shard.samples.keys]


def by_index(folder: Path, manifest: Manifest, shard: ShardEntry) -> list[str]:
    reader = ShardReader(folder, manifest, [shard])
    return [reader.read(index).key for index in range(len(reader))]


def by_stream(folder: Path, manifest: Manifest, shard: ShardEntry) -> list[str]:
    stream = SampleStream(folder, shard.split, manifest=manifest)
    return [sample.key for sample in stream.samples()]


def by_loader(folder: Path, manifest: Manifest, shard: ShardEntry) -> list[str]:
    reader = ShardReader(folder, manifest, [shard])
    content = BatchSpec(candidates=(0, 2), looked_at=(0, 1), glimpse_px=8, crops=True)
    loader = BatchLoader(reader, content, workers=1)
    keys = reader.keys
    batches = loader.batches([np.array([index]) for index in range(len(reader))])
    return [keys[int(batch.indices_B[0])] for batch in batches]


READERS = (by_verify, by_index, by_stream, by_loader)


def cuts(data: bytes) -> Iterator[int]:
    return iter(range(0, len(data), TAR_BLOCK))


@pytest.mark.parametrize("read", READERS)
def test_a_shard_that_is_cut_at_any_block_is_named_with_offset_and_sample(
    read: Read, own: tuple[Path, Manifest, ShardEntry, bytes]
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
    own: tuple[Path, Manifest, ShardEntry, bytes],
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
    read: Read, own: tuple[Path, Manifest, ShardEntry, bytes]
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
            place = f"{shard.name}, whose samples are intact: its end (from offset {end}"
        assert place in str(caught.value)


@pytest.mark.parametrize("read", [by_index, by_loader])
def test_the_other_samples_of_a_flipped_shard_are_still_there(
    read: Read, own: tuple[Path, Manifest, ShardEntry, bytes]
) -> None:
    folder, manifest, shard, data = own
    hit = shard.samples[1]
    position = hit.offset + hit.length - 1
    (folder / shard.name).write_bytes(
        data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    )
    reader = ShardReader(folder, manifest, [shard])
    for index, record in enumerate(shard.samples):
        if record.key != hit.key:
            assert reader.read(index).key == record.key
            assert len(reader.locate([index]).shards_B) == 1
    with pytest.raises(VerificationError, match=hit.key):
        read(folder, manifest, shard)


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "gone"])
def test_a_shard_that_is_damaged_while_it_is_read_is_named_at_the_next_sample(
    damage: str, own: tuple[Path, Manifest, ShardEntry, bytes]
) -> None:
    folder, manifest, shard, data = own
    path = folder / shard.name
    reader = ShardReader(folder, manifest, [shard])
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
    own: tuple[Path, Manifest, ShardEntry, bytes],
) -> None:
    folder, manifest, shard, data = own
    reader = ShardReader(folder, manifest, [shard])
    reader.locate([2])
    position = shard.samples[2].offset + 600
    with (folder / shard.name).open("r+b") as file:
        file.seek(position)
        file.write(bytes([data[position] ^ 8]))
    reader.read(0)
    with pytest.raises(VerificationError, match=shard.samples[2].key):
        reader.locate([2])


REBUILT = (
    r"The folder was rebuilt or deleted while it was read\. Run this command again when "
    r"srp-data build-shards is done\.$"
)


class Small:
    """A folder of one sample a shard, what a reader finds in it, and its rebuilding."""

    def __init__(self, images: Path, folder: Path, kind: str) -> None:
        self.images, self.folder, self.kind = images, folder, kind
        self.manifest = build_small(images, folder, kind)
        reader = self.reader()
        self.samples = [reader.read(index) for index in range(len(reader))]
        self.pixels = [sample.stacked().copy() for sample in self.samples]

    def reader(self) -> ShardReader:
        return ShardReader(self.folder, self.manifest, self.manifest.of_split("train"))

    def rebuild(self, stage: str = "rebuilt", **options: int) -> None:
        """Build another data set in place of this one; stop at a stage of that."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if stage != "deleted":
            build_small(self.images, self.folder, self.kind, **options)
        if stage == "unfinished":
            (self.folder / manifests.FILE_NAME).unlink()

    def has_length_of_before(self, index: int) -> bool:
        shard = self.manifest.of_split("train")[index]
        return (self.folder / shard.name).stat().st_size == shard.num_bytes


@pytest.fixture(params=KINDS)
def small(
    request: pytest.FixtureRequest, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Small:
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda *_, **__: 1)
    return Small(images, tmp_path / "small", request.param)


CHANGES = ({"seed": 1}, {"canvas_size": 28})


@pytest.mark.parametrize("change", CHANGES)
def test_a_loader_whose_folder_is_rebuilt_gives_what_was_there_before_or_says_so(
    change: dict[str, int], small: Small
) -> None:
    loaders = []
    for num_mapped, compiled in itertools.product((0, 2, 4), (False, True)):
        content = BatchSpec(candidates=(0, 2), looked_at=(0, 1), glimpse_px=8, compiled=compiled)
        loader = BatchLoader(small.reader(), content, workers=1)
        list(loader.batches([np.array([index]) for index in range(num_mapped)]))
        loaders.append((loader, num_mapped))
    small.rebuild(**change)
    for loader, num_mapped in loaders:
        for index in range(4):
            if index >= num_mapped or not small.has_length_of_before(index):
                with pytest.raises(VerificationError, match=REBUILT):
                    list(loader.batches([np.array([index])]))
                continue
            (batch,) = loader.batches([np.array([index])])
            before = small.pixels[index][[0, 2], :3].transpose(0, 2, 3, 1)
            np.testing.assert_array_equal(batch.arrays.crops_BKHWC[0], before)
            assert batch.labels_B.tolist() == [small.samples[index].label]


def test_a_reader_that_looks_at_any_stage_of_a_rebuild_says_so(small: Small) -> None:
    readers = {stage: small.reader() for stage in ("deleted", "unfinished", "rebuilt")}
    for stage, reader in readers.items():
        small.rebuild(stage, seed=1)
        for index in range(4):
            for look in (reader.read, lambda index, reader=reader: reader.locate([index])):
                with pytest.raises(VerificationError, match=REBUILT):
                    look(index)
    shutil.rmtree(small.folder)
    with pytest.raises(VerificationError, match=REBUILT):
        small.reader()


@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_whose_folder_is_rebuilt_gives_what_was_there_before_and_then_says_so(
    change: dict[str, int], small: Small
) -> None:
    stream = SampleStream(small.folder, "train", manifest=small.manifest)
    streams = {stage: stream.samples() for stage in ("deleted", "unfinished", "rebuilt")}
    read = {stage: [next(samples)] for stage, samples in streams.items()}
    for stage, samples in streams.items():
        small.rebuild(stage, **change)
        with pytest.raises(VerificationError, match=REBUILT):
            read[stage].extend(samples)  # keeps what came before the error
    for found in read.values():
        assert 0 < len(found) < 4
        for sample, before, pixels in zip(found, small.samples, small.pixels, strict=False):
            assert (sample.key, sample.label) == (before.key, before.label)
            np.testing.assert_array_equal(sample.stacked(), pixels)


def test_a_shard_that_a_later_run_of_the_build_mends_is_not_taken_for_the_one_before(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda *_, **__: 2)
    source, folder = shutil.copytree(images, tmp_path / "images"), tmp_path / "shards"
    whole = build_small(source, folder, "canvas-raw")
    image = source / folder_path(folder, whole)
    data = image.read_bytes()
    image.write_bytes(bytes(len(data)))
    shutil.rmtree(folder)
    manifest = build_small(source, folder, "canvas-raw", max_rejects=1)
    reader = ShardReader(folder, manifest, manifest.of_split("train"))
    reader.locate([0, 1, 2])
    image.write_bytes(data)
    assert build_small(source, folder, "canvas-raw", max_rejects=1) == whole
    reader.locate([1, 2])
    with pytest.raises(VerificationError, match=REBUILT):
        reader.locate([0])


def folder_path(folder: Path, manifest: Manifest) -> str:
    """Give the source of a folder's first sample, relative to the source's root."""
    return ShardReader(folder, manifest, manifest.of_split("train")).read(0).meta.path
