import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.read.sampler import (
    Windows,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
    window_bytes,
)

SIZES = {"num_samples": st.integers(30, 200), "batch_size": st.integers(1, 10)}


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
            rank=number,
            world_size=world_size,
        ).tolist()
        for number in range(world_size)
    ]


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
            num_samples, batch_size=batch_size, rank=number, world_size=world_size
        )
        for index in batch
    ]
    assert sorted(seen) == list(range(num_samples))


@given(**SIZES, world_size=st.integers(1, 3), seen=st.integers(0, 3), later=st.integers(1, 3))
def test_the_rest_of_an_epoch_is_what_an_unbroken_one_would_have_seen(
    num_samples: int, batch_size: int, world_size: int, seen: int, later: int
) -> None:
    steps = steps_per_epoch(num_samples, batch_size=batch_size, world_size=world_size)
    seen = min(seen, steps)
    ranks = epoch_of(num_samples, world_size, batch_size=batch_size)
    options = {"batch_size": batch_size, "seed": 0, "epoch": 0}
    start = seen * batch_size * world_size
    for rank, batches in enumerate(ranks):
        rest = training_batches(
            num_samples, rank=rank, world_size=world_size, start=start, **options
        )
        assert rest.tolist() == batches[seen:]
    whole = training_batches(num_samples, batch_size=1, seed=0, epoch=0)[:, 0].tolist()
    others = [
        training_batches(num_samples, rank=rank, world_size=later, start=start, **options)
        for rank in range(later)
    ]
    together = sorted(index for batches in others for index in batches.ravel().tolist())
    assert together == sorted(whole[start : start + len(together)])


@st.composite
def windowed(draw: st.DrawFn) -> tuple[Windows, int]:
    """Shards of a few samples and bytes each, which no cache of twice the window can hold."""
    counts = draw(st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(any))
    sizes = [draw(st.integers(1, 30)) for _ in counts]
    shards_N = np.repeat(np.arange(len(counts)), counts)
    window = draw(st.integers(1, max(1, sum(sizes) // 2)))
    return Windows(shards_N=shards_N, bytes_S=np.array(sizes), window_bytes=window), sum(counts)


@given(case=windowed(), batch_size=st.integers(1, 4), world_size=st.integers(1, 3), data=st.data())
def test_a_windowed_epoch_gives_each_rank_equal_steps_no_sample_twice_and_resumes_anywhere(
    case: tuple[Windows, int], batch_size: int, world_size: int, data: st.DataObject
) -> None:
    windows, num_samples = case
    options = {"batch_size": batch_size, "seed": 3, "epoch": 1, "windows": windows}
    ranks = [
        training_batches(num_samples, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    steps = num_samples // (batch_size * world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    seen = [index for batches in ranks for index in batches.ravel().tolist()]
    assert len(seen) == len(set(seen)) == steps * batch_size * world_size
    assert set(seen) <= set(range(num_samples))
    done = data.draw(st.integers(0, steps))
    start = done * batch_size * world_size
    for rank, batches in enumerate(ranks):
        rest = training_batches(
            num_samples, rank=rank, world_size=world_size, start=start, **options
        )
        assert rest.tolist() == batches[done:].tolist()
    alone = training_batches(num_samples, **options | {"batch_size": batch_size * world_size})
    assert np.concatenate(ranks, 1).tolist() == alone.tolist()


@given(case=windowed(), epoch=st.integers(0, 3))
def test_a_window_is_read_before_the_next_one_and_holds_no_more_than_it_may(
    case: tuple[Windows, int], epoch: int
) -> None:
    windows, num_samples = case
    order = training_batches(num_samples, batch_size=1, seed=0, epoch=epoch, windows=windows)[:, 0]
    assert sorted(order.tolist()) == list(range(num_samples))
    shards = windows.shards_N[order]
    needed: dict[int, list[int]] = {}
    for place, shard in enumerate(shards.tolist()):
        needed.setdefault(shard, []).append(place)
    # A shard is needed from its first sample to its last; those needed at once are one window.
    for place in range(num_samples):
        at_once = [s for s, places in needed.items() if places[0] <= place <= places[-1]]
        size = sum(int(windows.bytes_S[shard]) for shard in at_once)
        assert len(at_once) == 1 or size <= windows.window_bytes


def test_windows_differ_from_epoch_to_epoch_and_mix_their_samples() -> None:
    windows = Windows(shards_N=np.repeat(np.arange(6), 10), bytes_S=np.full(6, 5), window_bytes=10)
    orders = [
        training_batches(60, batch_size=1, seed=0, epoch=epoch, windows=windows)[:, 0]
        for epoch in range(2)
    ]
    firsts = [sorted(set(windows.shards_N[order[:20]].tolist())) for order in orders]
    assert [len(first) for first in firsts] == [2, 2]
    assert firsts[0] != firsts[1]
    assert len(set(windows.shards_N[orders[0][:10]].tolist())) == 2


@pytest.mark.parametrize(("limit", "window"), [(None, None), (30, None), (29, 14), (2, 1)])
def test_all_shards_are_one_window_where_they_fit(limit: int | None, window: int | None) -> None:
    assert window_bytes([10, 10, 10], limit) == window
