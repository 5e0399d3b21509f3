import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.read.collate import BatchSpec
from training.config import TrainConfig
from training.data.shards import Batch, BatchReader, Example, ShardDataset, TrainingBatches
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

CPU = torch.device("cpu")


def batch_reader(
    shards: ShardFolder, split: str = "train", *, workers: int = 2, **options: object
) -> BatchReader:
    chosen = {"candidates": tuple(range(len(shards.crop_layout))), "glimpse_px": 16, **options}
    return BatchReader(shards.reader(split), BatchSpec(**chosen), workers=workers, device=CPU)


def training(shards: ShardFolder, **options: int) -> TrainingBatches:
    workers = options.pop("workers", 2)
    reader = batch_reader(shards, workers=workers, crops=False)
    return TrainingBatches(reader, **{"batch_size": 8, "seed": 3, **options})


def kept(batch: Batch) -> Batch:
    """Copy a batch, whose memory is used again for the next one."""
    return Batch(*(None if tensor is None else tensor.clone() for tensor in batch))


def assert_equal(one: Batch, other: Batch) -> None:
    for first, second in zip(one, other, strict=True):
        assert first is second is None or torch.equal(first, second)


@pytest.mark.parametrize("layout", ["scene_shards", "scene_tensors"])
def test_a_batch_holds_what_the_samples_hold(layout: str, request: pytest.FixtureRequest) -> None:
    shards = ShardFolder.open(request.getfixturevalue(layout))
    indices = np.array([4, 0, 11])
    (batch,) = batch_reader(shards, "val").batches([indices])
    assert batch.glimpses_BLSS is not None
    for row, index in enumerate(indices):
        sample = shards.reader("val").read(index)
        crops_KCHW = batch.crops_BKHWC[row].permute(0, 3, 1, 2).numpy()
        assert np.array_equal(crops_KCHW, sample.originals)
        assert np.array_equal(batch.glimpses_BLSS[row].numpy(), sample.small_glimpses[:, 0])
        assert batch.labels_B[row] == sample.label
    assert batch.indices_B.tolist() == indices.tolist()


def test_no_glimpse_is_read_where_no_proposer_looks(opened: ShardFolder) -> None:
    (batch,) = batch_reader(opened, glimpse_px=None).batches(np.array([[0]]))
    assert batch.glimpses_BLSS is None
    assert batch.to(CPU).glimpses_BLSS is None


def test_each_pass_is_an_epoch_in_another_order(opened: ShardFolder) -> None:
    batches = training(opened)
    assert len(batches) == 70 // 8
    first, second = ([batch.indices_B.tolist() for batch in batches] for _ in range(2))
    assert len(first) == len(second) == len(batches)
    assert first != second
    assert batches.state_dict() == {"epoch": 2, "num_seen": 0}
    again = training(opened)
    assert [batch.indices_B.tolist() for batch in again] == first


@pytest.mark.parametrize("num_seen", range(9))
@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_training_sees_exactly_the_rest(
    opened: ShardFolder, num_seen: int, workers: int
) -> None:
    whole = training(opened)
    unbroken = [kept(batch) for _ in range(2) for batch in whole]
    broken = training(opened)
    passing = iter(broken)
    for expected in unbroken[:num_seen]:
        assert_equal(next(passing), expected)
    state = copy.deepcopy(broken.state_dict())
    passing.close()
    resumed = training(opened, workers=workers)
    resumed.load_state_dict(state)
    rest = [kept(batch) for _ in range(2) for batch in resumed]
    for one, other in zip(rest, unbroken[num_seen:], strict=num_seen < len(whole)):
        assert_equal(one, other)


def test_two_ranks_take_turns(opened: ShardFolder) -> None:
    alone = [batch.indices_B.tolist() for batch in training(opened, batch_size=16)]
    ranks = [
        [batch.indices_B.tolist() for batch in training(opened, rank=rank, world_size=2)]
        for rank in range(2)
    ]
    assert [one + other for one, other in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("state", [{"epoch": 0, "num_seen": 71}, {"epoch": -1, "num_seen": 0}])
def test_a_place_that_is_none_is_refused(opened: ShardFolder, state: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        training(opened).load_state_dict(state)
    assert str(caught.value) == (
        f"a position must lie within the training samples; got epoch {state['epoch']} and "
        f"{state['num_seen']} samples of 70. Use the state with its own shards."
    )


@pytest.mark.quick("0")  # each worker imports torch
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pytorchs_own_loader_reads_a_split(opened: ShardFolder, num_workers: int) -> None:
    reader = opened.reader("val")
    loader = DataLoader(
        ShardDataset(reader),
        batch_size=10,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
    )
    row = 0
    for batch in loader:
        assert isinstance(batch, Example)
        for crops_KHWC, glimpses_KSS, label in zip(*batch[:3], strict=True):
            sample = reader.read(row)
            assert np.array_equal(crops_KHWC.permute(0, 3, 1, 2), sample.originals)
            assert np.array_equal(glimpses_KSS, sample.small_glimpses[:, 0])
            assert label == sample.label
            row += 1
    assert row == len(reader)


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
    damaged = ShardFolder.open(folder)
    key = damaged.manifest.shards[0].samples[0].key
    config = tiny(workers=workers, batch_size=10, policy="centre")
    with pytest.raises(VerificationError) as caught:
        train(config, tmp_path / "run", shards=damaged)
    assert f"train-000000.tar at offset 0 (sample {key})" in str(caught.value)
    assert not RunPaths(folder=tmp_path / "run").last.exists()
