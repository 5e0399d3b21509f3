import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import ConfigError, VerificationError, printable
from pipeline.format import manifest as manifests
from pipeline.format.index_file import LocalFiles
from pipeline.format.manifest import Manifest, Reject
from pipeline.format.spec import DataSpec

SPEC = DataSpec(
    canvas_size=12,
    crop_size=7,
    glimpse_size=3,
    candidates="full+five",
    layout="canvas",
    decoder="pillow",
    exif=True,
    max_pixels=100,
    seed=0,
    limit=None,
    shard_mib=1,
)


@pytest.fixture
def folder(canvas_shards: Path, tmp_path: Path) -> Path:
    """A folder whose manifest a test may spoil."""
    out = tmp_path / "shards"
    out.mkdir()
    shutil.copy(canvas_shards / manifests.FILE_NAME, out)
    return out


def edit(folder: Path, **changes: Any) -> None:
    path = folder / manifests.FILE_NAME
    fields = json.loads(path.read_text())
    del fields["manifest_sha256"]
    path.write_text(json.dumps(fields | changes))


def test_a_manifest_comes_back_as_it_was_and_equal_ones_give_equal_text(shards: Path) -> None:
    data = (shards / manifests.FILE_NAME).read_bytes()
    manifest = manifests.decode_manifest(data, LocalFiles(folder=shards))
    assert manifests.encode_manifest(manifest) == data
    rejected = replace(manifest, rejects=(Reject(path="train/\\xff", reason="ünusable"),))
    data = manifests.encode_manifest(rejected)
    assert manifests.decode_manifest(data, LocalFiles(folder=shards)) == rejected
    assert rb'"reason": "\u00fcnusable"' in data  # ASCII, as Python's json writes it
    assert json.loads(data)["rejects"] == [{"path": "train/\\xff", "reason": "ünusable"}]


def test_a_person_finds_spec_candidates_classes_and_counts_at_its_head(
    canvas_shards: Path,
) -> None:
    fields = json.loads((canvas_shards / manifests.FILE_NAME).read_text())
    assert fields["format"] == "srp-shards/3"
    assert fields["spec"]["canvas_size"] == 168
    assert fields["candidates"][5] == {
        "name": "centre",
        "box_px": [28, 28, 140, 140],
        "box": [28 / 168, 28 / 168, 140 / 168, 140 / 168],
    }
    assert fields["classes"] == ["cat", "dog", "emu"]
    assert fields["splits"] == {
        "train": {"sources": 18, "samples": 18},
        "val": {"sources": 9, "samples": 9},
    }


def test_every_member_lies_where_the_manifest_says(shards: Path) -> None:
    manifest = manifests.load(shards)
    for shard in manifest.shards:
        with tarfile.open(shards / shard.name) as tar:
            there = [(info.name, info.offset_data, info.size) for info in tar]
        assert there == [
            (f"{sample.key}.{suffix}", extent.offset, extent.size)
            for sample in shard.samples
            for suffix, extent in zip(manifest.suffixes(), sample.extents(), strict=True)
        ]


def test_the_fingerprint_covers_every_field_of_the_spec_and_each_path_and_size() -> None:
    listing = [("train/a", 1), ("val/b", 2)]
    fingerprints = {manifests.fingerprint(SPEC, listing)}
    for name, value in vars(SPEC).items():
        other = {int: 99, bool: not value, str: "other", type(None): 5}[type(value)]
        fingerprints.add(manifests.fingerprint(replace(SPEC, **{name: other}), listing))
    for changed in ([("train/a", 2), ("val/b", 2)], [("train/c", 1), ("val/b", 2)], listing[:1]):
        fingerprints.add(manifests.fingerprint(SPEC, changed))
    assert len(fingerprints) == 1 + len(vars(SPEC)) + 3


def test_the_fingerprint_is_of_one_version_of_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = manifests.fingerprint(SPEC, [("train/a", 1)])
    monkeypatch.setattr(manifests, "FORMAT", "srp-shards/9")
    assert manifests.fingerprint(SPEC, [("train/a", 1)]) != before


def test_a_person_is_told_what_is_lossy(codec_shards: Path) -> None:
    fields = json.loads((codec_shards / manifests.FILE_NAME).read_text())
    spec = fields["spec"]
    is_jpeg = spec["codec"] == "jpeg"
    assert fields["lossy"] == is_jpeg
    assert (spec["jpeg_quality"], spec["jpeg_subsampling"]) == (
        (95, "4:4:4") if is_jpeg else (None, None)
    )
    assert re.search(r" \d+\.\d+", spec["codec_library"])


def test_an_unknown_codec_is_refused(folder: Path) -> None:
    spec = json.loads((folder / manifests.FILE_NAME).read_text())["spec"]
    edit(folder, spec=spec | {"codec": "jpeg-xl"})
    with pytest.raises(VerificationError, match="codec 'jpeg-xl'"):
        manifests.load(folder)


def test_a_folder_without_manifest_is_refused_with_the_command_that_makes_it(
    tmp_path: Path,
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"got none in .*srp-data build-shards SOURCE"):
            manifests.load(folder)


def test_another_version_of_the_format_is_refused_as_such(folder: Path) -> None:
    edit(folder, format="srp-shards/9")
    with pytest.raises(
        ConfigError, match=r"format srp-shards/3 or srp-shards/4; got 'srp-shards/9'\. Use the ver"
    ):
        manifests.load(folder)


def shards_of(folder: Path) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = json.loads((folder / manifests.FILE_NAME).read_text())["shards"]
    return shards


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../train-000000.tar"},
        {"name": "train-000000.tgz"},
        {"samples": 1},
        {"bytes": 1},
        {"keys": []},
        {"labels": [0]},
        {"offsets": "x"},
        {"sizes": {}},
    ],
)
def test_a_shard_whose_fields_do_not_agree_is_refused(change: dict[str, Any], folder: Path) -> None:
    shards = shards_of(folder)
    edit(folder, shards=[shards[0] | change, *shards[1:]])
    with pytest.raises(VerificationError, match=r"must be whole; got .*manifest\.json\. Delete it"):
        manifests.load(folder)


@pytest.mark.parametrize(
    "name",
    ["a\0.tar", "a\n.tar", "a/b.tar", "..tar", ".tar", "a b.tar", "-a.tar", "\x1b[2J.tar", "é.tar"],
)
def test_a_shard_whose_name_no_build_writes_is_refused_in_one_line(
    name: str, folder: Path, srp_data: Any
) -> None:
    shards = shards_of(folder)
    edit(folder, shards=[shards[0] | {"name": name}, *shards[1:]])
    with pytest.raises(VerificationError) as caught:
        manifests.load(folder)
    assert f"got ValueError: shard name {name!r} in {folder}/manifest.json" in str(caught.value)
    result = srp_data("verify", folder)
    assert result.exit_code == 3
    assert result.stderr == f"error: {printable(str(caught.value))}\n"


@pytest.mark.parametrize("name", ["../x", "", "a\0", "tr ain", "-train", "a/b", "train.tar"])
def test_a_split_whose_name_no_build_writes_is_refused(name: str, folder: Path) -> None:
    splits = json.loads((folder / manifests.FILE_NAME).read_text())["splits"]
    edit(folder, splits=splits | {name: {"sources": 0, "samples": 0}})
    with pytest.raises(VerificationError) as caught:
        manifests.load(folder)
    assert f"got ValueError: split name {name!r} in {folder}/manifest.json" in str(caught.value)


def test_a_shard_of_no_split_of_the_manifest_is_refused(folder: Path) -> None:
    shards = shards_of(folder)
    edit(folder, shards=[*shards, shards[0] | {"name": "a.tar", "split": "test"}])
    with pytest.raises(VerificationError, match=r"a\.tar of test, an unknown split in"):
        manifests.load(folder)


def test_a_shard_that_is_named_twice_is_refused(folder: Path) -> None:
    fields = json.loads((folder / manifests.FILE_NAME).read_text())
    shards, splits = fields["shards"], fields["splits"]
    splits["train"]["samples"] += shards[0]["samples"]
    edit(folder, shards=[*shards, shards[0]], splits=splits)
    with pytest.raises(VerificationError, match=r"got ValueError: train-000000\.tar twice in"):
        manifests.load(folder)


def test_a_label_of_no_class_is_refused(folder: Path) -> None:
    shards = shards_of(folder)
    shards[0]["labels"][0] = 3
    edit(folder, shards=shards)
    with pytest.raises(VerificationError, match="a label outside of 3 classes"):
        manifests.load(folder)


@pytest.mark.parametrize(
    "change",
    [{"shards": []}, {"spec": {}}, {"splits": []}, {"rejects": [{}]}, {"classes": ["one"]}],
)
def test_a_head_that_does_not_agree_is_refused(change: dict[str, Any], folder: Path) -> None:
    edit(folder, **change)
    with pytest.raises(VerificationError, match="a manifest must be whole"):
        manifests.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvas_size": 10**12}, "glimpses, crops and canvases of 32, 112 and 1000000000000 px"),
        ({"glimpse_size": -4}, "glimpses, crops and canvases of -4, 112 and 168 px"),
        ({"crop_size": 169}, "glimpses, crops and canvases of 32, 169 and 168 px"),
        ({"jpeg_quality": "x"}, "Expected `int | null`, got `str`"),
    ],
)
def test_sizes_and_kinds_that_no_build_writes_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    spec = json.loads((folder / manifests.FILE_NAME).read_text())["spec"]
    edit(folder, spec=spec | changes)
    with pytest.raises(VerificationError) as caught:
        manifests.load(folder)
    assert message in str(caught.value)


def test_a_bit_that_flips_anywhere_is_found_or_changes_nothing(folder: Path) -> None:
    path = folder / manifests.FILE_NAME
    data, whole = path.read_bytes(), manifests.load(folder)
    found = 0
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            assert manifests.load(folder) == whole
        except (ConfigError, VerificationError):
            found += 1
    assert found > len(range(0, len(data), 7)) - 10  # all but those in the digest's own name


def test_an_unknown_layout_is_refused(folder: Path) -> None:
    spec = json.loads((folder / manifests.FILE_NAME).read_text())["spec"]
    edit(folder, spec=spec | {"layout": "canvas-jpeg"})
    with pytest.raises(VerificationError, match="layout 'canvas-jpeg'"):
        manifests.load(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": 1'])
def test_a_file_that_is_no_manifest_is_refused(data: bytes, folder: Path) -> None:
    (folder / manifests.FILE_NAME).write_bytes(data)
    with pytest.raises(VerificationError, match="a manifest must be whole"):
        manifests.load(folder)


def test_the_folder_that_is_meant_is_found_one_level_down(folder: Path) -> None:
    assert manifests.find(folder) == folder
    assert manifests.find(folder.parent) == folder


def test_several_folders_that_may_be_meant_are_listed(folder: Path) -> None:
    other = shutil.copytree(folder, folder.with_name("others"))
    pattern = rf"holds 2: {re.escape(str(other))}, {re.escape(str(folder))}\. Name one of them"
    with pytest.raises(ConfigError, match=pattern):
        manifests.find(folder.parent)


def test_no_folder_that_may_be_meant_is_an_error_with_the_command_to_build_one(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"which has none\. Build shards with: srp-data build"):
        manifests.find(tmp_path)
    with pytest.raises(ConfigError, match="which does not exist"):
        manifests.find(tmp_path / "none")


def test_samples_are_counted_by_split(canvas_shards: Path) -> None:
    manifest: Manifest = manifests.load(canvas_shards)
    assert manifest.splits == ("train", "val")
    assert [manifest.num_samples(split) for split in manifest.splits] == [18, 9]
    assert {shard.split for shard in manifest.of_split("val")} == {"val"}
