import gc
import json
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from pipeline.common.errors import VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.codecs import codec_of
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.format.sample import Sample
from pipeline.read.reader import ShardReader


def assert_equal(one: Sample, other: Sample) -> None:
    assert (one.key, one.label, one.meta) == (other.key, other.label, other.meta)
    np.testing.assert_array_equal(one.originals, other.originals)
    np.testing.assert_array_equal(one.glimpses, other.glimpses)
    np.testing.assert_array_equal(one.stacked(), other.stacked())


def read_all(folder: Path, split: str) -> dict[str, Sample]:
    manifest = manifests.load(folder)
    reader = ShardReader(folder, manifest, manifest.of_split(split))
    return {key: reader.read(index) for index, key in enumerate(reader.keys)}


@pytest.fixture
def own(shards: Path, tmp_path: Path) -> tuple[Path, Manifest, ShardEntry]:
    """A folder of shards that a test may damage, and its first shard."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    manifest = manifests.load(folder)
    assert len(manifest.shards[0].samples) > 2
    return folder, manifest, manifest.shards[0]


Own = tuple[Path, Manifest, ShardEntry]


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_both_layouts_give_the_same_samples(canvas_shards: Path, tensor_shards: Path) -> None:
    for split, count in (("train", 18), ("val", 9)):
        canvas, tensors = read_all(canvas_shards, split), read_all(tensor_shards, split)
        assert canvas.keys() == tensors.keys()
        assert len(canvas) == count
        for key in canvas:
            assert_equal(canvas[key], tensors[key])


def test_every_codec_gives_the_samples_of_raw_canvases(
    canvas_shards: Path, codec_shards: Path
) -> None:
    is_lossy = codec_of(manifests.load(codec_shards).spec).is_lossy
    for split in ("train", "val"):
        raw, coded = read_all(canvas_shards, split), read_all(codec_shards, split)
        assert coded.keys() == raw.keys()
        for key, sample in coded.items():
            if not is_lossy:
                assert_equal(sample, raw[key])
                continue
            assert (sample.label, sample.meta) == (raw[key].label, raw[key].meta)
            np.testing.assert_array_equal(sample.glimpses, raw[key].glimpses)
            difference = np.abs(sample.originals.astype(int) - raw[key].originals)
            assert 0 < difference.mean() < 4
            assert difference.max() <= 64


def test_the_index_gives_keys_and_labels_without_reading(shards: Path) -> None:
    manifest = manifests.load(shards)
    reader = ShardReader(shards, manifest, manifest.of_split("train"))
    assert len(reader) == len(reader.keys) == len(reader.labels) == 18
    for index in (0, 17, 5):
        sample = reader.read(index)
        assert (sample.key, sample.label) == (reader.keys[index], reader.labels[index])
        assert manifest.classes[sample.label] == sample.meta.class_name


def test_crops_are_read_without_a_copy_and_cannot_be_written(canvas_shards: Path) -> None:
    manifest = manifests.load(canvas_shards)
    reader = ShardReader(canvas_shards, manifest, manifest.shards[:1])
    for crop in reader.read(0).crops:
        assert not crop.flags.owndata
        assert not crop.flags.writeable


def test_threads_may_share_a_reader(shards: Path) -> None:
    manifest = manifests.load(shards)
    reader = ShardReader(shards, manifest, manifest.of_split("train"))
    with ThreadPoolExecutor(4) as pool:
        keys = [sample.key for sample in pool.map(reader.read, range(len(reader)))]
    assert tuple(keys) == reader.keys


def test_a_flipped_byte_anywhere_in_a_sample_is_an_error_with_shard_and_offset(own: Own) -> None:
    folder, manifest, shard = own
    record = shard.samples[1]
    inside = [0, 5, 130, 512, 700, record.length // 2, record.length - 1]
    for position in inside:
        flip(folder / shard.name, record.offset + position)
        reader = ShardReader(folder, manifest, [shard])
        reader.read(0)
        reader.read(2)
        pattern = rf"{shard.name} at offset {record.offset} \(sample {record.key}\)"
        with pytest.raises(VerificationError, match=pattern):
            reader.read(1)
        flip(folder / shard.name, record.offset + position)


@pytest.mark.parametrize("length", [0, 1, 1024, -1024, -512, -1])
def test_a_cut_shard_is_an_error_with_shard_and_offset(length: int, own: Own) -> None:
    folder, manifest, shard = own
    length %= shard.num_bytes
    with (folder / shard.name).open("r+b") as file:
        file.truncate(length)
    pattern = rf"got {length} bytes, not {shard.num_bytes}, in .*{shard.name} \(broken from offset "
    with pytest.raises(
        VerificationError, match=pattern + rf"{length}, .*\).*same srp-data build-sh"
    ):
        ShardReader(folder, manifest, [shard])


def test_another_shard_under_the_name_is_an_error(own: Own) -> None:
    folder, manifest, shard = own
    path = folder / shard.name
    one, two = shard.samples[:2]
    data = path.read_bytes()
    swapped = data[two.offset :][: two.length] + data[one.offset :][: one.length]
    path.write_bytes(swapped + data[len(swapped) :])
    with pytest.raises(VerificationError, match=rf"{shard.name} at offset 0 "):
        ShardReader(folder, manifest, [shard]).read(0)


def test_a_missing_shard_is_an_error_with_the_fix(own: Own) -> None:
    folder, manifest, shard = own
    (folder / shard.name).unlink()
    with pytest.raises(VerificationError, match=rf"none at .*{shard.name}\. Run the same srp-data"):
        ShardReader(folder, manifest, [shard])


def plain_samples(folder: Path, split: str, *kinds: str) -> dict[str, dict[str, Any]]:
    """Read shards with the webdataset library alone, by key."""
    urls = sorted(str(path) for path in folder.glob(f"{split}-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(*kinds))
    gc.collect()  # the library leaves its files to the collector, which warns
    assert len(samples) == len({fields["__key__"] for fields in samples})
    return {fields["__key__"]: fields for fields in samples}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_webdataset_library_reads_the_shards_as_ordinary_ones(tensor_shards: Path) -> None:
    samples = read_all(tensor_shards, "train")
    plain = plain_samples(tensor_shards, "train")
    assert plain.keys() == samples.keys()
    for key, sample in samples.items():
        np.testing.assert_array_equal(plain[key]["originals.npy"], sample.originals)
        np.testing.assert_array_equal(plain[key]["glimpses.npy"], sample.glimpses)
        assert plain[key]["cls"] == sample.label
        assert plain[key]["json"]["path"] == sample.meta.path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_webdataset_library_reads_coded_canvases(codec_shards: Path) -> None:
    codec = codec_of(manifests.load(codec_shards).spec)
    canvas, resized = codec.canvas_suffix, codec.resized_suffix
    samples = read_all(codec_shards, "val")
    plain = plain_samples(codec_shards, "val")
    assert plain.keys() == samples.keys()
    assert all(isinstance(fields[canvas], bytes) for fields in plain.values())
    if codec.name == "zstd":  # no reader knows the filter; shards/README.md has it in two lines
        return
    for kind in ("rgb8", "pil"):
        for key, fields in plain_samples(codec_shards, "val", kind).items():
            sample = samples[key]
            assert fields["cls"] == sample.label
            np.testing.assert_array_equal(
                np.asarray(fields[canvas])[28:140, 28:140].transpose(2, 0, 1), sample.originals[5]
            )
            np.testing.assert_array_equal(
                np.asarray(fields[resized]).transpose(2, 0, 1), sample.originals[0]
            )


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_webdataset_library_reads_the_canvas_layout_too(canvas_shards: Path) -> None:
    samples = read_all(canvas_shards, "val")
    plain = plain_samples(canvas_shards, "val")
    assert plain.keys() == samples.keys()
    for key, sample in samples.items():
        assert plain[key]["canvas.npy"].shape == (168, 168, 3)
        resized_HWC = plain[key]["resized.npy"][0]
        np.testing.assert_array_equal(resized_HWC.transpose(2, 0, 1), sample.originals[0])
        np.testing.assert_array_equal(plain[key]["small-glimpses.npy"], sample.small_glimpses)


def test_tarfile_reads_the_shards_as_ordinary_tars(shards: Path) -> None:
    for path in shards.glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                assert info.isreg()
                assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
                if info.name.endswith(".json"):
                    file = tar.extractfile(info)
                    assert file is not None
                    assert json.loads(file.read()).keys() == {
                        "path", "class_name", "sha256", "width", "height"
                    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_snippets_in_the_formats_readme_run(
    tensor_shards: Path,
    zstd_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = Path(__file__).resolve().parents[3] / "shards/README.md"
    snippets = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "shards").symlink_to(tensor_shards)
    (tmp_path / "shards-zstd").symlink_to(zstd_shards)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    snippets = [snippet for snippet in snippets if "shards-png" not in snippet]
    for snippet in snippets:
        exec(compile(snippet, str(readme), "exec"), names)  # noqa: S102 - the text of our own README
    gc.collect()  # the webdataset library leaves its files to the collector, which warns
    printed = capsys.readouterr().out
    assert len(snippets) == 5
    samples = read_all(zstd_shards, "train")
    assert names["canvases"].keys() == samples.keys()
    for key, canvas_HWC in names["canvases"].items():
        centre = canvas_HWC[28:140, 28:140].transpose(2, 0, 1)
        np.testing.assert_array_equal(centre, samples[key].originals[5])
    assert "(6, 3, 112, 112) (6, 1, 112, 112) (6, 4, 112, 112)" in printed
    assert printed.count("torch.uint8 (8, 6, 3, 112, 112) (8, 6, 1, 112, 112)") == 2
    assert printed.count("\n") == 2 + 2 + 4 + 18
    assert "epoch 1: 18 samples, the first is " in printed
