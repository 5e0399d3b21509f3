import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.read.sampler import evaluation_batches, steps_per_epoch, training_batches

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
