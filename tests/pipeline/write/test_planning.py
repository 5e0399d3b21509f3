import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import spec_of

from pipeline.common.errors import SourceError
from pipeline.format.crops import CANDIDATE_SETS
from pipeline.format.sample import member_suffixes
from pipeline.format.spec import CODECS, LAYOUTS
from pipeline.format.ustar import tar_header
from pipeline.write.planning import (
    SourceImage,
    assign_keys,
    plan_shards,
    samples_per_shard,
    select,
)

NAMES = st.one_of(
    st.text(st.sampled_from("aAbß_é.- /"), min_size=1, max_size=6),
    st.text(min_size=1, max_size=120).map(lambda name: name.replace("\0", "")),
    st.sampled_from(["__meta__", "___x__", "a", "A", "ﬀ", "ff", "x" * 90]),
)
PATHS = st.lists(
    st.builds("train/{}/{}.JPEG".format, NAMES, NAMES), min_size=1, max_size=30, unique=True
)

SUFFIXES = {
    suffix
    for layout in LAYOUTS
    for codec in CODECS
    for suffix in member_suffixes(
        spec_of("full+five", canvas_px=3, crop_px=2, layout=layout, codec=codec)
    )
}


def images(paths: list[str], split: str = "train") -> list[SourceImage]:
    return [
        SourceImage(path=path, split=split, class_name="c", size=1, file="f", offset=0)
        for path in paths
    ]


@given(PATHS)
def test_keys_are_unique_in_any_file_system_and_safe_in_any_tar(paths: list[str]) -> None:
    keys = assign_keys(paths)
    assert list(keys) == paths
    assert len({key.casefold() for key in keys.values()}) == len(paths)
    for key in keys.values():
        assert re.fullmatch(r"[A-Za-z0-9_/-]+", key)
        assert not re.match(r"__[^/]*__($|/)", key), "the webdataset library skips these"
        for suffix in SUFFIXES:
            name = f"{key}.{suffix}"
            assert len(name) <= 100, "a ustar name"
            assert tar_header(name, 1)[: len(name)] == name.encode()


def test_a_plain_path_is_its_own_key() -> None:
    path = "train/n01440764/n01440764_10026.JPEG"
    assert assign_keys([path]) == {path: "n01440764/n01440764_10026"}


def test_equal_stems_and_other_cases_get_a_digest() -> None:
    keys = assign_keys(["train/c/a.png", "train/c/a.JPEG", "train/C/A.JPEG", "train/c/b.JPEG"])
    assert [bool(re.search("-[0-9a-f]{12}$", key)) for key in keys.values()] == [1, 1, 1, 0]


def test_a_name_like_anothers_key_is_kept_apart_from_it() -> None:
    (key,) = assign_keys(["train/c/a b.JPEG"]).values()
    for stem in (key, key.upper()):
        keys = assign_keys(["train/c/a b.JPEG", f"train/{stem}.JPEG"])
        assert len({key.casefold() for key in keys.values()}) == 2


def test_two_images_with_one_key_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.write.planning.hashlib.sha256", lambda _: hashlib.md5(b""))  # noqa: S324
    message = r"its own key; got c/a_b-\w{12} for train/c/a b\.jpg and for train/c/a\*b\.jpg\."
    with pytest.raises(SourceError, match=message):
        assign_keys(["train/c/a b.jpg", "train/c/a*b.jpg"])


def test_a_key_depends_on_its_own_path_when_that_is_safe() -> None:
    assert (
        assign_keys(["train/c/a.JPEG"]).items()
        <= assign_keys(["train/c/b.JPEG", "train/c/a.JPEG"]).items()
    )


@given(
    counts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    per_shard=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_every_image_is_in_exactly_one_shard(
    counts: tuple[int, int], per_shard: int, seed: int
) -> None:
    source = {
        split: images([f"{split}/c/{index}.JPEG" for index in range(count)], split)
        for split, count in zip(("train", "val"), counts, strict=True)
    }
    chosen = {split: select(source[split], seed=seed, limit=None) for split in source}
    planned = plan_shards(chosen, per_shard=per_shard)
    placed = Counter(image.path for _, members in planned for image in members)
    assert placed == Counter(image.path for members in source.values() for image in members)
    for spec, members in planned:
        assert 1 <= len(members) == len(spec.keys) <= per_shard
        assert {image.split for image in members} == {spec.split}
    names = [spec.name for spec, _ in planned]
    assert names == sorted(set(names))


@given(st.randoms(use_true_random=False), st.integers(1, 30), st.integers(0, 5))
def test_the_order_does_not_depend_on_the_order_of_the_listing(
    random: object, limit: int, seed: int
) -> None:
    listed = images([f"train/c/{index}.JPEG" for index in range(20)])
    shuffled = list(listed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    chosen = select(listed, seed=seed, limit=limit)
    assert select(shuffled, seed=seed, limit=limit) == chosen
    assert chosen == select(listed, seed=seed, limit=None)[:limit]


def test_another_seed_gives_another_order() -> None:
    listed = images([f"train/c/{index}.JPEG" for index in range(20)])
    assert select(listed, seed=0, limit=None) != select(listed, seed=1, limit=None)


@given(
    canvas_px=st.integers(8, 400),
    layout=st.sampled_from(["tensors", "canvas"]),
    candidates=st.sampled_from(CANDIDATE_SETS),
    shard_mib=st.integers(1, 4),
)
def test_a_shard_keeps_below_its_size(
    canvas_px: int, layout: str, candidates: str, shard_mib: int
) -> None:
    crop_px, glimpse_px = canvas_px // 2 + 1, canvas_px // 4
    sizes = {"canvas_px": canvas_px, "crop_px": crop_px, "glimpse_px": glimpse_px}
    spec = spec_of(candidates, **sizes, layout=layout, shard_mib=shard_mib)
    plan, count = spec.crop_layout, samples_per_shard(spec)
    if layout == "tensors":
        arrays = [len(plan) * 3 * crop_px**2, len(plan) * crop_px**2]
    else:
        resized = [3 * crop_px**2 * len(plan.resized)] if plan.resized else []
        arrays = [3 * canvas_px**2, *resized, len(plan) * glimpse_px**2]
    members = [size + 128 for size in arrays] + [1, 1000]
    sample = sum(512 + size + -size % 512 for size in members)
    assert count == 1 or count * sample + 1024 <= shard_mib << 20


def test_what_a_codec_saves_goes_into_more_samples() -> None:
    spec = spec_of(canvas_px=336, crop_px=224, glimpse_px=64)
    counts = {name: samples_per_shard(replace(spec, codec=name)) for name in CODECS}
    assert counts["raw"] == min(counts.values())
    assert sorted(counts, key=counts.__getitem__) == ["raw", "png", "zstd", "webp", "jpeg"]


def test_a_source_image_reads_its_own_bytes(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"onetwothree")
    image = SourceImage(
        path="p", split="s", class_name="c", size=3, file=str(tmp_path / "images"), offset=3
    )
    assert image.read() == b"two"
