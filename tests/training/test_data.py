import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import crops
from pipeline.errors import ConfigError, VerificationError
from training.config import RunPaths, TrainConfig
from training.data import (
    Batch,
    BatchReader,
    Shards,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from training.distributed import Process
from training.records import RunRecord

CPU = torch.device("cpu")
SIZES = {"num_samples": st.integers(30, 200), "batch_size": st.integers(1, 10)}


def rank(number: int, world_size: int) -> Process:
    return Process(rank=number, world_size=world_size, device=CPU)


def epoch_of(
    num_samples: int, world_size: int, *, batch_size: int = 1, seed: int = 0, epoch: int = 0
) -> list[list[list[int]]]:
    """List the batches of every rank."""
    return [
        training_batches(
            num_samples,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            process=rank(number, world_size),
        )
        for number in range(world_size)
    ]


def reader(shards: Shards, split: str = "val", **options: object) -> BatchReader:
    chosen = {"candidates": tuple(range(len(shards.plan))), "glimpse_px": 16, "workers": 2}
    return BatchReader(reader=shards.reader(split), pin=False, **{**chosen, **options})  # type: ignore[arg-type]


def assert_equal(one: Batch, other: Batch) -> None:
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first, second)


@given(num_samples=st.integers(1, 300), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_the_training_order_is_a_permutation_of_the_split(
    num_samples: int, seed: int, epoch: int
) -> None:
    (batches,) = epoch_of(num_samples, 1, seed=seed, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(num_samples))


@given(**SIZES, world_size=st.integers(1, 3))
def test_ranks_share_no_sample_and_take_equal_steps_of_full_batches(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    ranks = epoch_of(num_samples, world_size, batch_size=batch_size)
    steps = steps_per_epoch(num_samples, batch_size=batch_size, world_size=world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    seen = [index for batches in ranks for batch in batches for index in batch]
    assert len(seen) == len(set(seen)) == steps * batch_size * world_size
    assert num_samples - len(seen) < batch_size * world_size


@given(**SIZES, world_size=st.integers(2, 3))
def test_ranks_together_see_what_one_process_with_larger_batches_sees(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    ranks = epoch_of(num_samples, world_size, batch_size=batch_size)
    (alone,) = epoch_of(num_samples, 1, batch_size=batch_size * world_size)
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [epoch_of(50, 1, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    assert orders[0] == epoch_of(50, 1, seed=0, epoch=0)


def test_too_few_images_for_one_step_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        steps_per_epoch(100, batch_size=64, world_size=2)
    assert str(caught.value) == (
        "a step must not need more images than there are; got --batch-size 64 on 2 processes "
        "for 100 images. Lower --batch-size."
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(num_samples=st.integers(0, 100), batch_size=st.integers(1, 12))
def test_the_ranks_shares_of_an_evaluation_add_up_to_the_split(
    world_size: int, num_samples: int, batch_size: int
) -> None:
    seen = [
        index
        for number in range(world_size)
        for batch in evaluation_batches(
            num_samples, batch_size=batch_size, process=rank(number, world_size)
        )
        for index in batch
    ]
    assert sorted(seen) == list(range(num_samples))


@pytest.mark.parametrize("layout", ["scene_shards", "scene_tensors"])
def test_a_batch_holds_what_the_samples_hold(layout: str, request: pytest.FixtureRequest) -> None:
    shards = Shards.open(request.getfixturevalue(layout))
    indices = [4, 0, 11]
    (batch,) = reader(shards).batches([indices])
    assert batch.glimpses_BKSS is not None
    for row, index in enumerate(indices):
        sample = shards.reader("val").read(index)
        crops_KCHW = batch.crops_BKHWC[row].permute(0, 3, 1, 2).numpy()
        assert np.array_equal(crops_KCHW, sample.originals)
        assert np.array_equal(batch.glimpses_BKSS[row].numpy(), sample.small_glimpses[:, 0])
        assert batch.labels_B[row] == sample.label
    assert batch.indices_B.tolist() == indices


def test_both_layouts_give_equal_batches(scene_shards: Path, scene_tensors: Path) -> None:
    canvas, tensors = (
        list(reader(Shards.open(folder), "train").batches([[0, 69, 5], [7]]))
        for folder in (scene_shards, scene_tensors)
    )
    for one, other in zip(canvas, tensors, strict=True):
        assert_equal(one, other)


def test_the_number_of_workers_changes_nothing(opened: Shards) -> None:
    (batches,) = epoch_of(70, 1, batch_size=7)
    one, four = (list(reader(opened, "train", workers=w).batches(batches)) for w in (1, 4))
    assert len(one) == len(four) == len(batches)
    for first, second in zip(one, four, strict=True):
        assert_equal(first, second)


def test_only_the_chosen_candidates_are_read_in_their_order(opened: Shards) -> None:
    chosen = opened.plan.indices("centre,full")
    (some,) = reader(opened, candidates=chosen).batches([[3, 8]])
    (every,) = reader(opened).batches([[3, 8]])
    assert torch.equal(some.crops_BKHWC, every.crops_BKHWC[:, list(chosen)])
    assert some.glimpses_BKSS is not None
    assert every.glimpses_BKSS is not None
    assert torch.equal(some.glimpses_BKSS, every.glimpses_BKSS[:, list(chosen)])


@pytest.mark.parametrize("glimpse_px", [8, 13, 32])
def test_glimpses_of_another_size_are_cut_from_the_crops(opened: Shards, glimpse_px: int) -> None:
    (batch,) = reader(opened, glimpse_px=glimpse_px).batches([[2]])
    expected = crops.glimpses(opened.reader("val").read(2).crops, glimpse_px)[:, 0]
    assert batch.glimpses_BKSS is not None
    assert np.array_equal(batch.glimpses_BKSS[0].numpy(), expected)


def test_no_glimpse_is_read_where_no_proposer_looks(opened: Shards) -> None:
    (batch,) = reader(opened, glimpse_px=None).batches([[0]])
    assert batch.glimpses_BKSS is None
    assert batch.to(CPU).glimpses_BKSS is None


@pytest.mark.parametrize("workers", [1, 3])
def test_a_flipped_byte_ends_the_training_and_names_the_shard(
    scene_shards: Path,
    tiny: Callable[..., TrainConfig],
    train: Callable[..., RunRecord],
    tmp_path: Path,
    workers: int,
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(scene_shards, folder)
    shard = folder / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    damaged = Shards.open(folder)
    key = damaged.manifest.shards[0].samples[0].key
    config = tiny(workers=workers, batch_size=10, policy="centre")
    with pytest.raises(VerificationError) as caught:
        train(config, tmp_path / "run", shards=damaged)
    assert f"train-000000.tar at offset 0 (sample {key})" in str(caught.value)
    assert not RunPaths(folder=tmp_path / "run").last.exists()
