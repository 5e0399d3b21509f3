import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.codecs import Codec
from pipeline.format.cutting import glimpses
from pipeline.read.collate import Arrays, BatchSpec
from pipeline.read.loader import ArrayBatch, BatchLoader, aligned
from pipeline.read.reader import ShardReader
from pipeline.stream.stream import SampleStream

ORDER = np.random.default_rng(0).permutation(18)
PIECES = [ORDER[:5], ORDER[5:10], ORDER[10:15], ORDER[15:]]


def open_reader(folder: Path, split: str = "train") -> ShardReader:
    manifest = manifests.load(folder)
    return ShardReader(folder, manifest, manifest.of_split(split))


def open_loader(folder: Path, *, workers: int = 2, **options: Any) -> BatchLoader:
    content = BatchSpec(**{"candidates": tuple(range(6)), "glimpse_px": 32, **options})
    return BatchLoader(open_reader(folder), content, workers=workers)


def kept(batch: ArrayBatch) -> ArrayBatch:
    """Copy a batch, whose memory is used again for the next one."""
    arrays = Arrays(*(None if array is None else array.copy() for array in batch.arrays))
    return batch._replace(arrays=arrays)


def read_all(loader: BatchLoader) -> list[ArrayBatch]:
    return [kept(batch) for batch in loader.batches(PIECES)]


def assert_equal(one: list[ArrayBatch], other: list[ArrayBatch]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.indices_B.tolist() == second.indices_B.tolist()
        assert first.labels_B.tolist() == second.labels_B.tolist()
        for ours, theirs in zip(first.arrays, second.arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("candidates", [tuple(range(6)), (5, 0), (3,)])
@pytest.mark.parametrize("glimpse_px", [32, 13, None])
def test_batches_hold_the_samples_of_the_reader(
    shards: Path, compiled: bool, candidates: tuple[int, ...], glimpse_px: int | None
) -> None:
    reader = open_reader(shards)
    loader = open_loader(shards, compiled=compiled, candidates=candidates, glimpse_px=glimpse_px)
    rows = 0
    for batch in loader.batches(PIECES):
        for row, index in enumerate(batch.indices_B.tolist()):
            sample = reader.read(index, candidates=candidates)
            crops_KHWC = batch.arrays.crops_BKHWC[row]
            np.testing.assert_array_equal(crops_KHWC.transpose(0, 3, 1, 2), sample.originals)
            assert batch.labels_B[row] == sample.label
            if glimpse_px is None:
                assert batch.arrays.glimpses_BLSS is None
            else:
                expected = sample.small_glimpses
                if glimpse_px != 32:
                    expected = glimpses(sample.crops, glimpse_px)
                np.testing.assert_array_equal(batch.arrays.glimpses_BLSS[row], expected[:, 0])
            rows += 1
    assert rows == 18


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("crops", [False, True])
@pytest.mark.parametrize("glimpse_px", [32, 13])
def test_glimpses_may_be_those_of_other_candidates(
    canvas_shards: Path, zstd_shards: Path, compiled: bool, crops: bool, glimpse_px: int
) -> None:
    reader = open_reader(canvas_shards)
    for folder in (canvas_shards, zstd_shards):
        loader = open_loader(
            folder, compiled=compiled, crops=crops, candidates=(3, 1), looked_at=(0, 4, 1),
            glimpse_px=glimpse_px,
        )  # fmt: skip
        for batch in loader.batches(PIECES):
            for row, index in enumerate(batch.indices_B.tolist()):
                sample = reader.read(index)
                looked = glimpses([sample.crops[k] for k in (0, 4, 1)], glimpse_px)
                np.testing.assert_array_equal(batch.arrays.glimpses_BLSS[row], looked[:, 0])
                if crops:
                    crops_KHWC = batch.arrays.crops_BKHWC[row]
                    expected = np.stack([sample.crops[k].transpose(1, 2, 0) for k in (3, 1)])
                    np.testing.assert_array_equal(crops_KHWC, expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("crops", [False, True])
@pytest.mark.parametrize("candidates", [tuple(range(6)), (3, 1)])
def test_a_picture_is_decoded_once_for_the_crops_and_the_glimpses_of_a_sample(
    codec_shards: Path, compiled: bool, crops: bool, candidates: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    samples = [open_reader(codec_shards).read(index) for index in range(18)]
    num_decoded = count_decoded(monkeypatch)
    loader = open_loader(
        codec_shards, compiled=compiled, crops=crops, candidates=candidates, looked_at=(0, 4, 1),
        glimpse_px=13,
    )  # fmt: skip
    batches = read_all(loader)
    assert len(num_decoded) == 2 * 18  # the canvas, and the whole image resized
    for batch in batches:
        for row, index in enumerate(batch.indices_B.tolist()):
            looked = glimpses([samples[index].crops[k] for k in (0, 4, 1)], 13)
            np.testing.assert_array_equal(batch.arrays.glimpses_BLSS[row], looked[:, 0])
            if crops:
                shown = [samples[index].crops[k].transpose(1, 2, 0) for k in candidates]
                np.testing.assert_array_equal(batch.arrays.crops_BKHWC[row], np.stack(shown))


def test_a_stream_decodes_each_picture_of_a_sample_once(
    codec_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = SampleStream(codec_shards, "train")
    num_decoded = count_decoded(monkeypatch)
    assert len([glimpses(sample.crops, 13) for sample in stream.samples()]) == 18
    assert len(num_decoded) == 2 * 18


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grow a list by one for each picture that is decoded from now on."""
    real, decoded = Codec.decode_into, []

    def counting(codec: Codec, data: Any, out_HWC: Any) -> None:
        decoded.append(None)
        real(codec, data, out_HWC)

    monkeypatch.setattr(Codec, "decode_into", counting)
    return decoded


@pytest.mark.parametrize("compiled", [False, True])
def test_canvases_come_with_the_candidates_that_cannot_be_cut_from_them(
    canvas_shards: Path, compiled: bool
) -> None:
    reader, plan = open_reader(canvas_shards), open_reader(canvas_shards).manifest.spec.crop_layout
    for batch in open_loader(canvas_shards, crops=False, compiled=compiled).batches(PIECES):
        assert batch.arrays.crops_BKHWC is None
        for row, index in enumerate(batch.indices_B.tolist()):
            sample = reader.read(index)
            for k, box in enumerate(plan.boxes):
                crop_HWC = (
                    batch.arrays.canvases_BCC3[row, box.y0 : box.y1, box.x0 : box.x1]
                    if plan.is_cut(k)
                    else batch.arrays.resized_BRHWC[row, plan.resized.index(k)]
                )
                np.testing.assert_array_equal(crop_HWC.transpose(2, 0, 1), sample.crops[k])


def test_canvases_are_refused_where_there_are_none(tensor_shards: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_loader(tensor_shards, crops=False)
    assert str(caught.value) == (
        "canvases can be read only from shards that hold them; got --layout tensors. "
        "Read crops, or build shards with --layout canvas."
    )


@pytest.mark.parametrize("workers", [1, 4])
def test_neither_layout_nor_workers_change_a_batch(
    canvas_shards: Path, tensor_shards: Path, workers: int
) -> None:
    expected = read_all(open_loader(canvas_shards))
    assert_equal(read_all(open_loader(tensor_shards, workers=workers)), expected)
    assert_equal(read_all(open_loader(canvas_shards, workers=workers)), expected)


def test_a_few_buffers_take_turns_over_all_epochs(canvas_shards: Path) -> None:
    made = []

    def allocate(shape: tuple[int, ...]) -> Any:
        made.append(aligned(shape))
        return made[-1]

    content = BatchSpec(candidates=(0,), glimpse_px=None)
    loader = BatchLoader(open_reader(canvas_shards), content, workers=1, allocate=allocate)
    seen = set()
    for _ in range(5):
        for batch in loader.batches(PIECES * 3):
            seen.add(batch.arrays.crops_BKHWC.ctypes.data)
    assert len(made) <= 4
    assert seen == {array.ctypes.data for array in made}


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(canvas_shards: Path) -> None:
    loader = open_loader(canvas_shards, workers=4)
    for batch in loader.batches(PIECES * 10):
        before = kept(batch)
        threading.Event().wait(0.002)  # the readers go on meanwhile
        assert_equal([batch], [before])


def test_a_loader_that_is_left_early_ends_its_threads(canvas_shards: Path) -> None:
    before = threading.active_count()
    batches = open_loader(canvas_shards).batches(PIECES * 10)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_arrays_begin_at_a_cache_line() -> None:
    for shape in ((1,), (3, 5), (64, 100, 3)):
        array = aligned(shape)
        assert array.shape == shape
        assert array.ctypes.data % 64 == 0


@pytest.mark.parametrize("position", [3, 700, 90_000])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_flipped_byte_is_an_error_with_shard_and_sample(
    canvas_shards: Path, tmp_path: Path, position: int, compiled: bool
) -> None:
    folder = shutil.copytree(canvas_shards, tmp_path / "shards")
    manifest = manifests.load(folder)
    shard = manifest.shards[0]
    data = bytearray((folder / shard.name).read_bytes())
    data[position] ^= 4
    (folder / shard.name).write_bytes(data)
    loader = open_loader(folder, compiled=compiled)
    (sample,) = (
        sample for sample in shard.samples if 0 <= position - sample.offset < sample.length
    )
    damaged = rf"{shard.name} at offset {sample.offset} \(sample {sample.key}\)"
    with pytest.raises(VerificationError, match=damaged):
        list(loader.batches(PIECES))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("spec", "member"),
    [
        ({"canvas_size": 160}, "canvas.npy"),
        ({"crop_size": 111}, "resized.npy"),
        ({"glimpse_size": 64}, "small-glimpses.npy"),
    ],
)
def test_arrays_of_other_sizes_than_the_manifests_are_refused_before_they_are_copied(
    canvas_shards: Path, spec: dict[str, int], member: str, compiled: bool
) -> None:
    manifest = manifests.load(canvas_shards)
    other = replace(manifest, spec=replace(manifest.spec, **spec))
    reader = ShardReader(canvas_shards, other, other.of_split("train"))
    content = BatchSpec(candidates=(0, 1), glimpse_px=None, compiled=compiled)
    with pytest.raises(VerificationError) as caught:
        list(BatchLoader(reader, content, workers=1).batches([np.array([2])]))
    record = manifest.shards[0].samples[2]
    assert str(caught.value) == (
        f"{member} must be an array of the manifest's sizes; got another in train-000000.tar at "
        f"offset {record.offset} (sample {record.key}). Rebuild the shard."
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("index", [-1, -18, 18])
def test_an_index_outside_the_split_is_refused_also_once_every_sample_was_checked(
    shards: Path, index: int, compiled: bool
) -> None:
    loader = open_loader(shards, compiled=compiled)
    message = rf"^a sample's index must be at least 0 and below 18; got {index}\.$"
    for _epoch in range(2):
        for ask in (
            lambda: list(loader.batches([np.array([0, index])])),
            lambda: loader.reader.locate([index]),
            lambda: loader.reader.read(index),
            lambda: loader.reader.place_of(index),
        ):
            with pytest.raises(IndexError, match=message):
                ask()
        read_all(loader)
    assert loader.reader.locate([]).shards_B.tolist() == []


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrong", [{"candidates": (0, 6)}, {"looked_at": (-1,)}])
def test_a_candidate_that_there_is_not_is_refused_before_its_address_is_computed(
    shards: Path, wrong: dict[str, tuple[int, ...]], compiled: bool
) -> None:
    index = next(iter(wrong.values()))[-1]
    with pytest.raises(IndexError, match=rf"^a candidate's .* 0 and below 6; got {index}\.$"):
        open_loader(shards, compiled=compiled, **wrong)
