import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from specs import spec_of

from pipeline.common.errors import VerificationError
from pipeline.format import cutting
from pipeline.format import sample as sample_module
from pipeline.format.codecs import Codec
from pipeline.format.crops import CANDIDATE_SETS, candidate_names
from pipeline.format.sample import PlannedShard, Sample, SampleMeta
from pipeline.format.spec import DataSpec

META = SampleMeta(path="train/c/é.JPEG", class_name="c", sha256="0" * 64, width=9, height=8)
GLIMPSE_PX = 3
RAW = Codec()


def encode(
    layout: str, candidates: str = "full+five", codec: Codec = RAW
) -> tuple[dict[str, bytes], DataSpec]:
    spec = spec_of(
        candidates, canvas_px=12, crop_px=7, glimpse_px=GLIMPSE_PX, layout=layout,
        codec=codec.name, jpeg_quality=codec.jpeg_quality, jpeg_subsampling=codec.jpeg_subsampling,
    )  # fmt: skip
    canvas = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    plan = spec.crop_layout
    resized = cutting.resized_crops(canvas, plan)
    views = cutting.original_crops(canvas, resized, plan, range(len(plan)))
    glimpses = cutting.glimpses(views, GLIMPSE_PX)
    members = sample_module.encode_sample(
        spec, canvas=canvas, resized=resized, glimpses=glimpses, label=4, meta=META
    )
    return {suffix: b"".join(member) for suffix, member in members.items()}, spec


def decode(members: dict[str, bytes], spec: DataSpec, **options: Any) -> Sample:
    return sample_module.decode_sample(spec, "c/key", members, where="HERE", **options)


@pytest.mark.parametrize("candidates", CANDIDATE_SETS)
def test_both_layouts_hold_the_same_sample(candidates: str) -> None:
    tensors = decode(*encode("tensors", candidates))
    canvas = decode(*encode("canvas", candidates))
    num_candidates = len(candidate_names(candidates))
    assert tensors.originals.shape == (num_candidates, 3, 7, 7)
    assert tensors.glimpses.shape == (num_candidates, 1, 7, 7)
    np.testing.assert_array_equal(tensors.originals, canvas.originals)
    np.testing.assert_array_equal(tensors.glimpses, canvas.glimpses)
    np.testing.assert_array_equal(tensors.small_glimpses, canvas.small_glimpses)
    np.testing.assert_array_equal(tensors.stacked(), canvas.stacked())
    assert (tensors.key, tensors.label, tensors.meta) == (canvas.key, canvas.label, canvas.meta)
    assert tensors.meta == META


CODED = [Codec("zstd"), Codec("png"), Codec("webp"), Codec("jpeg", 95, "4:4:4")]


@pytest.mark.parametrize("codec", CODED, ids=lambda codec: codec.name)
@pytest.mark.parametrize("candidates", CANDIDATE_SETS)
def test_every_codec_holds_the_same_sample(codec: Codec, candidates: str) -> None:
    raw = decode(*encode("canvas", candidates))
    members, spec = encode("canvas", candidates, codec)
    assert tuple(members) == sample_module.member_suffixes(spec)
    sample = decode(members, spec)
    if not codec.is_lossy:
        np.testing.assert_array_equal(sample.stacked(), raw.stacked())
    np.testing.assert_array_equal(sample.glimpses, raw.glimpses)
    assert sample.originals.shape == raw.originals.shape
    assert (sample.key, sample.label, sample.meta) == (raw.key, raw.label, raw.meta)
    assert not any(crop.flags.writeable or crop.flags.owndata for crop in sample.crops)


def suffix_of(codec: Codec, stem: str) -> str:
    return codec.canvas_suffix if stem == "canvas" else codec.resized_suffix


@pytest.mark.parametrize("codec", CODED, ids=lambda codec: codec.name)
def test_only_what_the_chosen_candidates_are_cut_from_is_decoded(codec: Codec) -> None:
    members, spec = encode("canvas", "full+five", codec)
    everything = decode(members, spec)
    for candidates, spoilt in (((0,), "canvas"), ((5, 1), "resized")):
        spoiled = members | {suffix_of(codec, spoilt): b""}
        some = decode(spoiled, spec, candidates=candidates)
        np.testing.assert_array_equal(some.originals, everything.originals[list(candidates)])


@pytest.mark.parametrize("codec", CODED, ids=lambda codec: codec.name)
@pytest.mark.parametrize("stem", ["canvas", "resized"])
def test_a_coded_member_that_is_no_such_image_is_an_error_with_its_place(
    codec: Codec, stem: str
) -> None:
    members, spec = encode("canvas", "full+five", codec)
    other = {"canvas": "resized", "resized": "canvas"}[stem]
    for data in (
        b"",
        b"text",
        members[suffix_of(codec, stem)][:-3],
        members[suffix_of(codec, other)],
    ):
        with pytest.raises(VerificationError, match=r"in HERE\. Rebuild the shard\."):
            decode(members | {suffix_of(codec, stem): data}, spec)


@pytest.mark.parametrize("layout", ["tensors", "canvas"])
def test_members_lie_in_the_order_that_the_format_lists(layout: str) -> None:
    for candidates in ("five", "full+five"):
        members, spec = encode(layout, candidates)
        assert tuple(members) == sample_module.member_suffixes(spec)


def test_the_tensors_layout_stores_all_crops_and_padded_glimpses_as_npy() -> None:
    members, spec = encode("tensors")
    sample = decode(members, spec)
    originals = np.load(io.BytesIO(members["originals.npy"]), allow_pickle=False)
    glimpses = np.load(io.BytesIO(members["glimpses.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(originals, sample.originals)
    np.testing.assert_array_equal(glimpses, sample.glimpses)
    assert members["cls"] == b"4"
    assert json.loads(members["json"])["path"] == META.path


def test_stacked_is_the_predecessors_tensor_rgb_then_glimpse() -> None:
    sample = decode(*encode("canvas"))
    stacked = sample.stacked()
    assert stacked.shape == (6, 4, 7, 7)
    np.testing.assert_array_equal(stacked[:, :3], sample.originals)
    np.testing.assert_array_equal(stacked[:, 3:], sample.glimpses)
    assert not stacked[:, 3, GLIMPSE_PX:].any()
    assert not stacked[:, 3, :, GLIMPSE_PX:].any()


@pytest.mark.parametrize("layout", ["tensors", "canvas"])
def test_some_candidates_are_those_of_the_whole_sample(layout: str) -> None:
    members, spec = encode(layout)
    everything = decode(members, spec)
    some = decode(members, spec, candidates=(5, 1))
    np.testing.assert_array_equal(some.originals, everything.originals[[5, 1]])
    np.testing.assert_array_equal(some.glimpses, everything.glimpses[[5, 1]])


def test_crops_of_a_canvas_are_views_on_its_bytes() -> None:
    members, spec = encode("canvas", "five")
    stored = np.frombuffer(members["canvas.npy"], np.uint8)
    assert all(np.shares_memory(crop, stored) for crop in decode(members, spec).crops)


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def replaced(suffix: str, data: bytes | None) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        if data is None:
            del members[suffix]
        else:
            members[suffix] = data

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("cls", b"cat"),
        replaced("cls", None),
        replaced("json", b"{"),
        replaced("json", b"[]"),
        replaced("json", b'{"path": "p", "and": "more"}'),
        replaced("canvas.npy", None),
        replaced("canvas.npy", npy(np.zeros((12, 11, 3), np.uint8))),
        replaced("resized.npy", npy(np.zeros((0, 3, 7, 7), np.uint8))),
        replaced("small-glimpses.npy", npy(np.zeros((6, 1, 4, 3), np.uint8))),
    ],
)
def test_a_member_that_is_not_what_its_suffix_says_is_an_error_with_its_place(
    change: Callable[[dict[str, bytes]], None],
) -> None:
    members, spec = encode("canvas")
    change(members)
    with pytest.raises(VerificationError, match=r"in HERE\. Rebuild the shard\."):
        decode(members, spec)


def test_a_shard_knows_its_file_name() -> None:
    assert PlannedShard(split="val", index=12, keys=()).name == "val-000012.tar"
