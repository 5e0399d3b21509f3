from pathlib import Path

import numpy as np
import pytest

from pipeline.format import manifest as manifests
from pipeline.format.npy import decode_array


@pytest.mark.parametrize("split", ["train", "val"])
def test_timm_reads_its_info_file(split: str, shards: Path) -> None:
    timm = pytest.importorskip(
        "timm.data.readers.reader_wds", reason="timm reads the file, and is not in here"
    )
    manifest = manifests.load(shards)
    info = timm._parse_split_info(split, timm._load_info(str(shards)))
    assert info.num_samples == manifest.num_samples(split)
    assert info.filenames == tuple(shard.name for shard in manifest.of_split(split))
    assert info.shard_lengths == tuple(len(shard.samples) for shard in manifest.of_split(split))
    assert all((shards / name).is_file() for name in info.filenames)


def test_dalis_index_points_to_the_right_bytes(shards: Path) -> None:
    manifest = manifests.load(shards)
    for shard in manifest.shards:
        head, *lines = (shards / shard.name).with_suffix(".idx").read_text().splitlines()
        assert head == f"v1.2 {len(shard.samples)}"
        assert len(lines) == len(shard.samples)
        data = (shards / shard.name).read_bytes()
        for line, sample in zip(lines, shard.samples, strict=True):
            words = line.split(" ")
            members = [words[start : start + 4] for start in range(0, len(words), 4)]
            assert [suffix for suffix, *_ in members] == list(manifest.suffixes())
            for suffix, offset, size, name in members:
                assert name == f"{sample.key}.{suffix}"
                there = data[int(offset) :][: int(size)]
                assert data[int(offset) - 512 :].startswith(name.encode())
                if suffix == "cls":
                    assert int(there) == sample.label
                elif suffix.endswith(".npy"):
                    assert np.asarray(decode_array(there, name)).dtype == np.uint8


def test_dali_has_an_index_beside_every_shard(shards: Path) -> None:
    names = {path.stem for path in shards.glob("*.tar")}
    assert {path.stem for path in shards.glob("*.idx")} == names
