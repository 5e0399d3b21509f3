from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import Web

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.format.index import SampleIndex
from pipeline.stream.cache import ShardCache
from pipeline.stream.folder import part_of


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


def made_up(opened: ShardFolder, keys: list[str], *, num_each: int) -> ShardFolder:
    """Put keys into training shards of a size; the validation split stays."""
    shards = []
    for at in range(0, len(keys), num_each):
        part = keys[at : at + num_each]
        places = range(len(part))
        samples = SampleIndex(
            keys=part, labels=places, offsets=places, crc32=places, sizes={"pixels": 1}
        )
        shards.append(replace(opened.manifest.shards[0], split="train", samples=samples))
    kept = (*shards, *opened.manifest.of_split("val"))
    return replace(opened, manifest=replace(opened.manifest, shards=kept))


def keys_of(opened: ShardFolder, split: str) -> list[str]:
    return [key for shard in opened.manifest.of_split(split) for key in shard.samples.keys]


def test_dev_is_a_tenth_of_the_training_split_and_the_rest_is_trained_on(
    tensor_shards: Path,
) -> None:
    keys = [f"n{number // 100}/{number}" for number in range(10_000)]
    whole = made_up(ShardFolder.open(tensor_shards), keys, num_each=1000)
    dev = whole.with_dev()
    train, val = keys_of(dev, "train"), keys_of(dev, "val")
    assert 900 <= len(val) <= 1100
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(keys)
    in_val = set(val)
    assert train == [key for key in keys if key not in in_val]  # in the order of the shards
    assert not set(keys_of(whole, "val")) & set(val + train)
    assert dev.splits == ("train", "val")
    # Its runs are never compared with those of the whole split.
    assert dev.manifest.fingerprint != whole.manifest.fingerprint
    assert dev.manifest.fingerprint == whole.with_dev().manifest.fingerprint
    assert dev.manifest.num_samples("val") == len(val)
    assert all(len(shard.samples) for shard in dev.manifest.shards)


def test_dev_holds_the_same_keys_in_shards_of_another_size_and_order(tensor_shards: Path) -> None:
    opened = ShardFolder.open(tensor_shards)
    keys = [f"{number}.jpg" for number in range(2000)]
    first = made_up(opened, keys, num_each=700).with_dev()
    other = made_up(opened, keys[::-1], num_each=3).with_dev()
    for split in ("train", "val"):
        assert sorted(keys_of(first, split)) == sorted(keys_of(other, split))
        samples = {s.key: s for shard in first.manifest.of_split(split) for s in shard.samples}
        assert all(samples[key].label == keys.index(key) % 700 for key in list(samples)[:50])


def test_the_parts_of_two_partitions_are_independent() -> None:
    keys = [str(number) for number in range(4000)]
    both = [(part_of(key, 2, salt="one"), part_of(key, 2, salt="other")) for key in keys]
    assert all(900 <= both.count(pair) <= 1100 for pair in ((0, 0), (0, 1), (1, 0), (1, 1)))
    assert part_of("a", 10, salt="dev") == part_of("a", 10, salt="dev") < 10


def test_a_sample_is_in_the_same_fold_in_all_shards_that_hold_its_key(tensor_shards: Path) -> None:
    opened = ShardFolder.open(tensor_shards)
    keys = [f"{number}.jpg" for number in range(2000)]
    first = made_up(opened, keys, num_each=700)
    other = made_up(opened, keys[500:][::-1], num_each=3).with_dev()
    folds = dict(zip(keys_of(first, "train"), first.fold_of("train", 2).tolist(), strict=True))
    again = dict(zip(keys_of(other, "train"), other.fold_of("train", 2).tolist(), strict=True))
    assert len(again) > 1000
    assert all(folds[key] == fold for key, fold in again.items())
    assert 900 <= sum(folds.values()) <= 1100


def test_a_reader_of_dev_reads_the_samples_of_its_keys(tensor_shards: Path) -> None:
    opened = ShardFolder.open(tensor_shards)
    dev, whole = opened.with_dev(), opened.reader("train")
    places = {key: place for place, key in enumerate(whole.keys)}
    for split in ("train", "val"):
        reader = dev.reader(split)
        assert len(reader)
        for place, key in enumerate(reader.keys):
            sample, known = reader.read(place), whole.read(places[key])
            assert (sample.key, sample.label) == (key, known.label)
            np.testing.assert_array_equal(sample.originals, known.originals)


@pytest.mark.parametrize(
    ("is_dev", "counts"), [(True, "0 to train on and 3"), (False, "3 to train on and 0")]
)
def test_dev_of_too_few_images_is_refused(is_dev: bool, counts: str, tensor_shards: Path) -> None:
    keys = [str(n) for n in range(100) if (part_of(str(n), 10, salt="dev") == 0) == is_dev][:3]
    few = made_up(ShardFolder.open(tensor_shards), keys, num_each=2)
    with pytest.raises(ConfigError) as caught:
        few.with_dev()
    assert str(caught.value) == (
        f"--dev needs training images on both sides; got {counts} in dev, in {tensor_shards}. "
        "Leave --dev out, or build more images."
    )


def test_an_address_is_opened_through_a_cache(web: Web, tmp_path: Path) -> None:
    opened = ShardFolder.open(f"{web.address}/", cache=tmp_path / "cache")
    assert opened.place == web.address
    assert opened.cache == ShardCache(folder=tmp_path / "cache")
    assert opened.manifest == ShardFolder.open(web.folder).manifest
    assert not (tmp_path / "cache").exists()
    kept = opened.limited(5).reader("train")
    assert [kept.read(index).key for index in range(len(kept))] == list(kept.keys)
    assert ShardFolder.open(web.folder).cache is None


def test_the_cache_of_the_user_is_the_default(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for base, folder in (("", ".cache"), ("not/absolute", ".cache"), (str(tmp_path / "x"), "x")):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        cache = ShardFolder.open(web.address).cache
        assert cache is not None
        assert cache.folder == tmp_path / folder / "srp/shards"


def test_a_window_is_half_of_a_cache_that_cannot_hold_the_split(web: Web, tmp_path: Path) -> None:
    sizes = [shard.num_bytes for shard in ShardFolder.open(web.folder).manifest.of_split("train")]
    assert 2 * 2**20 < sum(sizes) < 9 * 2**20
    windows = {
        limit: ShardFolder.open(web.address, cache=tmp_path, cache_mib=limit).window_mib("train")
        for limit in (None, 9, 2)
    }
    assert windows == {None: None, 9: None, 2: 1.0}
    assert ShardFolder.open(web.folder).window_mib("train") is None
