"""Manifests whose indexes are files of their own: the same samples, and every damage is named."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common.errors import ConfigError, SrpError, VerificationError
from pipeline.format import index_file
from pipeline.format import manifest as manifests
from pipeline.format.index_file import StoredIndex, index_name
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.sampler import training_batches
from pipeline.stream.folder import ShardFolder
from pipeline.stream.partition import Part
from pipeline.stream.stream import SampleStream
from pipeline.verify.verify import verify_shards


def split_indexes(whole: Path, out: Path) -> Path:
    """Copy a folder, with an index file for each shard."""
    shutil.copytree(whole, out)
    manifest = manifests.load(whole)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifests, "INLINE_SAMPLES", 0)
        for name, content in manifests.index_files(manifest):
            (out / name).write_bytes(content)
        (out / manifests.FILE_NAME).write_bytes(manifests.encode_manifest(manifest))
    return out


@pytest.fixture
def sharded(shards: Path, tmp_path: Path) -> Path:
    return split_indexes(shards, tmp_path / "sharded")


@pytest.fixture
def own(canvas_shards: Path, tmp_path: Path) -> Path:
    return split_indexes(canvas_shards, tmp_path / "sharded")


def test_a_manifest_that_names_index_files_holds_no_sample(sharded: Path, shards: Path) -> None:
    fields = json.loads((sharded / manifests.FILE_NAME).read_text())
    inline = json.loads((shards / manifests.FILE_NAME).read_text())
    assert fields["format"] == "srp-shards/4"
    differing = {"format", "manifest_sha256", "shards"}
    assert {name for name in fields if fields[name] != inline[name]} == differing
    for row, line in zip(fields["shards"], inline["shards"], strict=True):
        own = ("index_bytes", "index_sha256")
        assert row.keys() == {"name", "split", "samples", "bytes", "sha256", *own}
        assert all(row[name] == line[name] for name in row if name not in own)
        index = json.loads((sharded / index_name(row["name"])).read_text())
        assert index == {name: line[name] for name in line if name not in row}


def test_it_comes_back_as_it_was_and_reads_no_index_before_one_is_needed(
    sharded: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifests.load(sharded)
    counts = [len(shard.samples) for shard in manifest.shards]
    assert not manifest.shards[0].samples._files._kept  # type: ignore[union-attr]
    monkeypatch.setattr(manifests, "INLINE_SAMPLES", 0)
    assert manifests.encode_manifest(manifest) == (sharded / manifests.FILE_NAME).read_bytes()
    whole = manifests.load(shards)
    assert counts == [len(shard.samples) for shard in whole.shards]
    assert manifest == whole
    assert whole == manifest
    assert hash(manifest.shards[0].samples) == hash(manifests.load(sharded).shards[0].samples)


def test_samples_batches_order_and_folds_are_those_of_one_file(sharded: Path, shards: Path) -> None:
    opened, whole = ShardFolder.open(sharded), ShardFolder.open(shards)
    for split in ("train", "val"):
        ours, theirs = opened.reader(split), whole.reader(split)
        assert ours.keys == theirs.keys
        assert ours.labels == theirs.labels
        np.testing.assert_array_equal(opened.fold_of(split, 2), whole.fold_of(split, 2))
        wanted = BatchSpec(candidates=(0, 3), glimpse_px=7)
        order = training_batches(len(ours), batch_size=3, seed=1, epoch=2)
        batches = [
            BatchLoader(reader, wanted, workers=2).batches(order) for reader in (ours, theirs)
        ]
        for batch, other in zip(*batches, strict=True):
            np.testing.assert_array_equal(batch.arrays.crops_BKHWC, other.arrays.crops_BKHWC)
            np.testing.assert_array_equal(batch.arrays.glimpses_BLSS, other.arrays.glimpses_BLSS)
            assert batch.labels_B.tolist() == other.labels_B.tolist()
    parts = [folder.with_dev().limited(5).manifest for folder in (opened, whole)]
    assert parts[0] == parts[1]


def test_a_stream_gives_the_samples_of_one_file(sharded: Path, shards: Path) -> None:
    for part in (Part(), Part(rank=1, world_size=2)):
        ours, theirs = (
            SampleStream(folder, "train", seed=3, shuffle_buffer=4) for folder in (sharded, shards)
        )
        for sample, other in zip(
            ours.samples(1, part=part), theirs.samples(1, part=part), strict=True
        ):
            assert (sample.key, sample.label, sample.meta) == (other.key, other.label, other.meta)
            np.testing.assert_array_equal(sample.stacked(), other.stacked())


def test_verify_finds_it_whole(sharded: Path, shards: Path) -> None:
    assert verify_shards(sharded, workers=2).manifest == manifests.load(shards)


def test_another_process_reads_the_index_again(own: Path) -> None:
    manifest = manifests.load(own)
    shard = manifest.shards[0]
    assert shard.samples[0].key
    sent = pickle.loads(pickle.dumps(shard))  # noqa: S301 - its own bytes
    assert isinstance(sent.samples, StoredIndex)
    assert sent == shard
    assert tuple(sent.samples) == tuple(shard.samples)


def test_few_indexes_are_kept_whatever_is_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "KEPT_SAMPLES", 1)
    manifest = manifests.load(own)
    files = manifest.shards[0].samples._files  # type: ignore[union-attr]
    for _ in range(2):
        for shard in manifest.shards:
            assert len(tuple(shard.samples)) == len(shard.samples)
            assert len(files._kept) <= 2
            assert files._num_kept == sum(map(len, files._kept.values()))
    assert len(manifest.shards) > 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "missing": Path.unlink,
    "of another shard": lambda path: shutil.copy(path.with_name("train-000001.index.json"), path),
}


def by_index(folder: Path) -> None:
    ShardFolder.open(folder).reader("train")


def by_stream(folder: Path) -> None:
    list(SampleStream(folder, "train").samples())


def by_verify(folder: Path) -> None:
    verify_shards(folder, workers=1)


@pytest.mark.parametrize("read", [by_index, by_stream, by_verify])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_file_is_an_error_that_names_the_shard(
    damage: str, read: Callable[[Path], None], own: Path
) -> None:
    DAMAGES[damage](own / "train-000000.index.json")
    with pytest.raises(VerificationError) as caught:
        read(own)
    text = str(caught.value)
    assert text.count("the index of train-000000.tar must be the one that the manifest names") == 1
    assert f"{own}/train-000000.index.json. Run the same srp-data build-shards" in text


def test_a_command_says_it_in_one_line_with_status_3(own: Path, srp_data: Any) -> None:
    assert srp_data("verify", own).exit_code == 0
    DAMAGES["flipped"](own / "val-000000.index.json")
    result = srp_data("verify", own)  # whose shards are unchanged, and not read again
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].startswith("error: the index of val-000000.tar must")
    assert "the index of val-000000.tar must be the one" in result.stderr


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keys": ["a"]}, "ValueError: a column of"),
        ({"labels": -1}, "a label outside of 3 classes"),
        ({"offsets": 512}, "ValueError: offset"),
        ({"sizes": {}}, "ValueError: members"),
        ({"crc32": 2**40}, "OverflowError"),
        ({"crc32": "text"}, "ValidationError"),
    ],
)
def test_an_index_of_the_right_digest_is_checked_as_well(
    changes: dict[str, Any], reason: str, own: Path
) -> None:
    path = own / "train-000000.index.json"
    fields = json.loads(path.read_text())
    ((name, value),) = changes.items()
    fields[name] = value if isinstance(value, list | dict) else [value, *fields[name][1:]]
    path.write_text(json.dumps(fields))
    manifest_path = own / manifests.FILE_NAME
    manifest = json.loads(manifest_path.read_text())
    del manifest["manifest_sha256"]
    digest = index_file.digest_of(path.read_bytes())
    manifest["shards"][0] |= {"index_bytes": digest.num_bytes, "index_sha256": digest.sha256}
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=reason):
        manifests.load(own).shards[0].samples.in_memory()


def test_a_row_that_no_build_writes_is_refused(own: Path) -> None:
    path = own / manifests.FILE_NAME
    for name, value in (("samples", -1), ("index_bytes", 2**40), ("name", "../a.tar")):
        manifest = json.loads(path.read_text())
        manifest.pop("manifest_sha256", None)
        manifest["shards"][0][name] = value
        copy = own / "copy"
        copy.mkdir(exist_ok=True)
        (copy / manifests.FILE_NAME).write_text(json.dumps(manifest))
        with pytest.raises(VerificationError, match="a manifest must be whole"):
            manifests.load(copy)


def test_an_address_gives_the_same_samples_and_names_the_index(
    web: Any, canvas_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = split_indexes(canvas_shards, tmp_path / "sharded")
    monkeypatch.setattr(web, "folder", folder)
    streams = (SampleStream(place, "train", seed=1) for place in (web.address, canvas_shards))
    first, second = ([sample.key for sample in stream.samples()] for stream in streams)
    assert first == second
    assert verify_shards(web.address, workers=1).manifest == manifests.load(canvas_shards)
    DAMAGES["missing"](folder / "train-000000.index.json")
    with pytest.raises(SrpError, match=r"got none in http.*train-000000\.index\.json\. Copy"):
        list(SampleStream(web.address, "train").samples())


def test_a_build_of_many_samples_writes_index_files_and_mends_a_damaged_one(
    own_tree: Path, tmp_path: Path, srp_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ("--canvas-size", 96, "--crop-size", 64, "--glimpse-size", 8, "--shard-mib", 1)
    out = tmp_path / "out"
    build = ("build-shards", own_tree, out, *sizes, "-j", 1)
    monkeypatch.setattr(manifests, "INLINE_SAMPLES", 5)
    assert srp_data(*build).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    names = [shard.name for shard in manifests.load(out).shards]
    assert {index_name(name) for name in names} <= before.keys()
    assert verify_shards(out, workers=1).unnamed == ()
    assert srp_data(*build).exit_code == 0
    flip(out / index_name(names[0]))
    assert srp_data(*build).exit_code == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert srp_data("verify", out, "--all").exit_code == 0


def test_few_samples_are_in_one_file_as_before(shards: Path) -> None:
    manifest = manifests.load(shards)
    assert not manifest.has_index_files
    assert list(manifests.index_files(manifest)) == []
    assert not list(shards.glob("*.index.json"))


def test_an_older_version_refuses_the_format_in_one_line(own: Path) -> None:
    path = own / manifests.FILE_NAME
    path.write_bytes(path.read_bytes().replace(b"srp-shards/4", b"srp-shards/5"))
    with pytest.raises(ConfigError, match=r"srp-shards/3 or srp-shards/4; got 'srp-shards/5'"):
        manifests.load(own)


def test_a_part_of_a_manifest_can_be_streamed(own: Path) -> None:
    manifest = manifests.load(own)
    alone = replace(manifest, shards=manifest.of_split("train")[:1])
    stream = SampleStream(own, "train", manifest=alone)
    assert len(list(stream.samples())) == len(alone.shards[0].samples)
