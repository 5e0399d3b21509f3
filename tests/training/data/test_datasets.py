from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import ShardFolder
from pipeline.format.sample import Sample
from pipeline.stream.stream import SampleStream
from training.data.datasets import StreamDataset
from training.data.processes import Process

NUM_TRAIN = 70


def keys(samples: list[Sample]) -> list[str]:
    return [sample.key for sample in samples]


def dataset(
    folder: Path, *, rank: int = 0, world_size: int = 1, equal: bool = True
) -> StreamDataset:
    stream = SampleStream(folder, "train", seed=0, shuffle_buffer=8)
    process = Process(rank=rank, world_size=world_size, device=torch.device("cpu"))
    return StreamDataset(stream, process, equal=equal)


def loader(data: StreamDataset, num_workers: int) -> "DataLoader[list[str]]":
    return DataLoader(
        data,
        batch_size=5,
        collate_fn=keys,
        num_workers=num_workers,
        multiprocessing_context="forkserver" if num_workers else None,
        persistent_workers=num_workers > 0,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_every_sample_once_an_epoch_in_another_order(
    num_workers: int, scene_shards: Path, opened: ShardFolder
) -> None:
    data = dataset(scene_shards)
    batches = loader(data, num_workers)
    orders = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        read = list(batches)
        assert len(read) == data.num_batches(batch_size=5, num_workers=num_workers, drop_last=False)
        orders.append([key for batch in read for key in batch])
    assert len(orders[0]) == NUM_TRAIN
    assert sorted(orders[0]) == sorted(opened.reader("train").keys)
    assert sorted(orders[1]) == sorted(orders[0])
    assert orders[1] != orders[0]
    assert orders[2] == orders[0]


@pytest.mark.parametrize("world_size", [3, 4])
def test_ranks_share_no_sample_and_take_equally_many(world_size: int, scene_shards: Path) -> None:
    ranks = [dataset(scene_shards, rank=rank, world_size=world_size) for rank in range(world_size)]
    read = [[key for batch in loader(data, 0) for key in batch] for data in ranks]
    assert [len(part) for part in read] == [NUM_TRAIN // world_size] * world_size
    assert len({key for part in read for key in part}) == NUM_TRAIN // world_size * world_size


def test_an_evaluation_leaves_nothing_out(scene_shards: Path) -> None:
    ranks = [dataset(scene_shards, rank=rank, world_size=4, equal=False) for rank in range(4)]
    read = [sample.key for data in ranks for sample in data]
    assert len(set(read)) == len(read) == NUM_TRAIN


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_rank_takes_as_many_steps_as_were_counted_before_the_first(
    num_workers: int, drop_last: bool, scene_shards: Path
) -> None:
    ranks = [dataset(scene_shards, rank=rank, world_size=4) for rank in range(4)]
    options = {"batch_size": 4, "num_workers": num_workers, "drop_last": drop_last}
    counted = [data.num_batches(**options) for data in ranks]  # type: ignore[arg-type]
    # 70 samples: 17 for each rank, and 5, 6 and 6 for each of three workers.
    expected = {0: (5, 4), 1: (5, 4), 3: (6, 3)}[num_workers][drop_last]
    assert counted == [expected] * 4
