from pathlib import Path

import pytest

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError


def test_a_folder_is_opened_by_its_path_or_by_that_of_the_folder_around_it(
    tmp_path: Path, five_shards: Path
) -> None:
    (tmp_path / "shards").symlink_to(five_shards)
    opened = ShardFolder.open(tmp_path / "shards")
    assert ShardFolder.open(tmp_path) == ShardFolder.open(str(tmp_path)) == opened
    assert opened.splits == ("train", "val")
    assert opened.crop_layout.names == opened.manifest.spec.crop_layout.names
    reader = opened.reader("val")
    assert len(reader) == opened.manifest.num_samples("val")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a folder with a manifest\.json"):
        ShardFolder.open(tmp_path)


def test_a_split_without_samples_is_refused(five_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 0 in 'test' of .*\. Build shards from"):
        ShardFolder.open(five_shards).reader("test")


def test_a_limit_keeps_the_first_samples_of_each_split(tensor_shards: Path) -> None:
    opened = ShardFolder.open(tensor_shards)
    few = opened.limited(5)
    for split in opened.splits:
        whole, kept = opened.reader(split), few.reader(split)
        assert len(kept) == 5
        assert kept.keys == whole.keys[:5]
        assert kept.read(4).label == whole.read(4).label
    assert opened.limited(1000).manifest == opened.manifest


def test_a_limit_over_several_shards_drops_those_beyond_it(tensor_shards: Path) -> None:
    opened = ShardFolder.open(tensor_shards)
    first = len(opened.manifest.of_split("train")[0].samples)
    assert len(opened.manifest.of_split("train")) > 1
    few = opened.limited(first + 1)
    assert len(few.manifest.of_split("train")) == 2
    assert few.reader("train").keys == opened.reader("train").keys[: first + 1]
