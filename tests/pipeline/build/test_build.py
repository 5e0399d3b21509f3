import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import ConfigError, RejectsError, SourceError
from pipeline.format import manifest as manifests
from pipeline.format.manifest import Manifest
from pipeline.format.sample import Sample
from pipeline.read.reader import ShardReader
from pipeline.verify.verify import VERIFIED_NAME

SIZES = {"canvas_size": 168, "crop_size": 112, "glimpse_size": 32}


def files(folder: Path) -> dict[str, str]:
    """Digest of all that a build writes below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != VERIFIED_NAME  # of a test that ran before
    }


def samples(folder: Path, manifest: Manifest) -> dict[str, Sample]:
    """Every sample of a folder, by the path of its source."""
    reader = ShardReader(folder, manifest, manifest.shards)
    read = [reader.read(index) for index in range(len(reader))]
    assert len({sample.meta.path for sample in read}) == len(read)
    return {sample.meta.path: sample for sample in read}


def test_every_image_is_in_exactly_one_shard_as_torchvision_sees_it(
    image_tree: Path, shards: Path, torchvision_views: Any
) -> None:
    built = samples(shards, manifests.load(shards))
    sources = {path.relative_to(image_tree).as_posix() for path in image_tree.rglob("*.JPEG")}
    assert built.keys() == sources
    for path, sample in built.items():
        data = (image_tree / path).read_bytes()
        image = Image.open(io.BytesIO(data))
        originals, glimpses = torchvision_views(image.convert("RGB"), **SIZES)
        np.testing.assert_array_equal(sample.originals[1:], originals)
        np.testing.assert_array_equal(sample.glimpses[1:], glimpses)
        split, class_name, _ = path.split("/")
        assert sample.key == path.removeprefix(f"{split}/").removesuffix(".JPEG")
        assert sample.meta.class_name == class_name == ("cat", "dog", "emu")[sample.label]
        assert sample.meta.sha256 == hashlib.sha256(data).hexdigest()
        assert (sample.meta.width, sample.meta.height) == image.size


def test_real_photos_come_out_as_torchvision_sees_them(
    real_jpegs: list[bytes], make_shards: Any, tmp_path: Path, torchvision_views: Any
) -> None:
    for index, data in enumerate(real_jpegs):
        path = tmp_path / "images" / ("val" if index % 3 else "train") / "c" / f"{index}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source, sizes = tmp_path / "images", {"canvas_size": 336, "crop_size": 224, "glimpse_size": 64}
    built = [
        samples(out, make_shards(source, out, layout=layout, candidates="five", **sizes).manifest)
        for layout, out in (("tensors", tmp_path / "tensors"), ("canvas", tmp_path / "canvas"))
    ]
    for path, sample in built[0].items():
        image = Image.open(tmp_path / "images" / path).convert("RGB")
        originals, glimpses = torchvision_views(image, **sizes)
        for layout in built:
            np.testing.assert_array_equal(layout[path].originals, originals)
            np.testing.assert_array_equal(layout[path].glimpses, glimpses)
        np.testing.assert_array_equal(sample.stacked(), built[1][path].stacked())
    assert len(built[0]) == len(built[1]) == len(real_jpegs)


def test_workers_and_kind_of_source_do_not_change_a_byte(
    image_tree: Path, image_archive: Path, canvas_shards: Path, make_shards: Any, tmp_path: Path
) -> None:
    expected = files(canvas_shards)
    assert {"manifest.json", "_info.json", "train-000001.tar", "val-000000.idx"} <= set(expected)
    for name, source, workers in (
        ("two", image_tree, 2),
        ("three", image_tree, 3),
        ("archive", image_archive, 2),
    ):
        out = tmp_path / name
        options = {"layout": "canvas", "candidates": "full+five", "shard_mib": 1}
        result = make_shards(source, out, workers=workers, **options)
        assert files(out) == expected
        assert not (out / ".build").exists()
        assert result.skipped == (("images/README.csv",) if name == "archive" else ())


@pytest.mark.parametrize("is_packed", [False, True])
def test_every_file_is_a_sample_a_reject_or_skipped(
    is_packed: bool, own_tree: Path, jpeg: Any, make_shards: Any, tmp_path: Path
) -> None:
    for kind, suffix in (("PPM", "pnm"), ("PPM", "pbm"), ("MPO", "mpo"), ("JPEG", "jfif"),
                         ("JPEG", "jpe"), ("PNG", "apng")):  # fmt: skip
        (own_tree / f"train/cat/image.{suffix}").write_bytes(jpeg(1, kind=kind))
    for name in ("float.pfm", "other.eps", "text.txt", "none", "text.jpg"):
        (own_tree / f"val/dog/{name}").write_bytes(b"Pf\n1 1\n-1.0\n\0\0\x80\x3f")
    (own_tree / "val/dog/\udcff.txt").touch()
    num_files = sum(path.is_file() for path in own_tree.rglob("*"))
    source = own_tree
    if is_packed:
        source = tmp_path / "images.tgz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(own_tree, "images")
    result = make_shards(source, tmp_path / "out", max_rejects=9)
    manifest = result.manifest
    num_samples = sum(manifest.num_samples(split) for split in manifest.splits)
    num_found = sum(manifest.num_sources.values())
    reasons = {reject.path: reject.reason for reject in manifest.rejects}
    assert reasons == dict.fromkeys(
        ("val/dog/float.pfm", "val/dog/text.jpg"), "float images have no documented range"
    )
    assert num_found == num_samples + len(reasons) == 27 + 8
    assert num_files == num_samples + len(reasons) + len(result.skipped)
    assert {name.removeprefix("images/") for name in result.skipped} == {
        "val/dog/other.eps", "val/dog/text.txt", "val/dog/none", r"val/dog/\xff.txt",
    }  # fmt: skip


def test_workers_do_not_change_a_byte_of_any_codec(
    image_tree: Path, codec_shards: Path, make_shards: Any, tmp_path: Path
) -> None:
    codec = manifests.load(codec_shards).spec.codec
    options = {"codec": codec, "candidates": "full+five", "shard_mib": 1}
    make_shards(image_tree, tmp_path / "two", workers=2, **options)
    assert files(tmp_path / "two") == files(codec_shards)
    assert make_shards(image_tree, tmp_path / "two", **options).reused


def test_a_limit_draws_some_of_each_split_by_the_seed(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    drawn = []
    for seed in (0, 0, 1):
        out = tmp_path / str(len(drawn))
        manifest = make_shards(image_tree, out, limit=4, seed=seed).manifest
        assert manifest.num_sources == {"train": 4, "val": 4}
        drawn.append(set(samples(out, manifest)))
    assert drawn[0] == drawn[1] != drawn[2]


def spoil(tree: Path) -> dict[str, str]:
    """Spoil three images; return what each will be rejected for."""
    truncated = tree / "train/cat/cat_001.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:-300])
    (tree / "train/dog/dog_002.JPEG").write_text("I am a text file.")
    (tree / "val/emu/emu_000.JPEG").write_bytes(b"")
    return {
        "train/cat/cat_001.JPEG": "truncated",
        "train/dog/dog_002.JPEG": "not an image of a known format",
        "val/emu/emu_000.JPEG": "empty file",
    }


def test_unusable_images_are_named_and_nothing_is_published(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    reasons = spoil(own_tree)
    out = tmp_path / "out"
    with pytest.raises(RejectsError, match=r"--max-rejects 0 .*got 3, the first .*rejects\.jsonl"):
        make_shards(own_tree, out)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {reject["path"] for reject in rejects} == set(reasons)
    for reject in rejects:
        assert reasons[reject["path"]] in reject["reason"]
        assert str(tmp_path) not in reject["reason"]
    assert not (out / "manifest.json").exists()


def test_tolerated_rejects_are_published_with_their_count_after_another_try(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    reasons = spoil(own_tree)
    out = tmp_path / "out"
    for max_rejects in (0, 2):
        with pytest.raises(RejectsError, match="Add --max-rejects 3 to leave them out"):
            make_shards(own_tree, out, max_rejects=max_rejects, shard_mib=1)
    result = make_shards(own_tree, out, max_rejects=3, shard_mib=1)
    planned = {shard.name: shard for shard in result.manifest.shards}
    whole = [name for name in planned if name in result.reused]
    retried = [name for name in planned if name not in result.reused]
    assert whole, "a shard without rejects is kept"
    assert retried, "a shard with rejects is built again: its images may be readable by now"
    assert result.manifest.num_sources == {"train": 18, "val": 9}
    assert [result.manifest.num_samples(split) for split in ("train", "val")] == [16, 8]
    assert {reject.path for reject in result.manifest.rejects} == set(reasons)
    assert set(samples(out, result.manifest)).isdisjoint(reasons)
    fresh = tmp_path / "fresh"
    make_shards(own_tree, fresh, max_rejects=9, shard_mib=1, workers=2)
    assert files(fresh) == files(out)


def test_a_broken_link_is_a_reject_whose_reason_names_no_path_of_the_machine(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    (own_tree / "val/cat/cat_009.JPEG").symlink_to(tmp_path / "nowhere")
    manifest = make_shards(own_tree, tmp_path / "out", max_rejects=1).manifest
    assert [(reject.path, reject.reason) for reject in manifest.rejects] == [
        ("val/cat/cat_009.JPEG", "No such file or directory")
    ]


def test_a_file_name_of_any_bytes_gets_through(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    odd = own_tree / "train/cat" / "\udcff [red] é\n.JPEG"
    (own_tree / "train/cat/cat_000.JPEG").rename(odd)
    out = tmp_path / "out"
    manifest = make_shards(own_tree, out).manifest
    assert manifests.load(out) == manifest
    path = odd.relative_to(own_tree).as_posix().replace("\udcff", r"\xff")
    assert samples(out, manifest)[path].meta.path == path


def test_options_that_cannot_work_leave_no_trace(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError):
        make_shards(image_tree, out, crop_size=999)
    with pytest.raises(SourceError):
        make_shards(tmp_path / "none", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        make_shards(tmp_path / "empty", out)
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_named(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(
            ConfigError, match=r"OUT must be a folder that can be written; got .*fi"
        ):
            make_shards(image_tree, out)
