import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.format.index import SampleEntry, ShardEntry
from pipeline.format.ustar import TAR_END
from pipeline.stream.partition import Part, Piece, cut_blocks, cut_pieces, extent_of, share_of


def shard_of(index: int, count: int) -> ShardEntry:
    samples = tuple(
        SampleEntry(key=f"{index}/{row}", label=0, offset=512 * row, sizes=(0,), crc32=0)
        for row in range(count)
    )
    return ShardEntry(
        name=f"train-{index:06d}.tar",
        split="train",
        num_bytes=512 * count + len(TAR_END),
        sha256="0" * 64,
        samples=samples,
    )


COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)
READERS = {"world_size": st.integers(1, 4), "num_workers": st.integers(1, 3)}


def keys_of(counts: list[int], part: Part, *, equal: bool) -> list[str]:
    shards = [shard_of(index, count) for index, count in enumerate(counts)]
    share = share_of(sum(counts), part, equal=equal)
    return [
        sample.key
        for piece in cut_pieces(shards, share)
        for sample in piece.shard.samples[piece.first : piece.stop]
    ]


def keys_of_all(
    counts: list[int], *, world_size: int, num_workers: int, equal: bool
) -> list[list[list[str]]]:
    """List the keys of every worker of every rank."""
    return [
        [
            keys_of(
                counts,
                Part(rank=rank, world_size=world_size, worker=worker, num_workers=num_workers),
                equal=equal,
            )
            for worker in range(num_workers)
        ]
        for rank in range(world_size)
    ]


@given(counts=COUNTS, **READERS)
def test_every_sample_is_read_once_by_all_ranks_and_workers_together(
    counts: list[int], world_size: int, num_workers: int
) -> None:
    ranks = keys_of_all(counts, world_size=world_size, num_workers=num_workers, equal=False)
    read = [key for workers in ranks for keys in workers for key in keys]
    assert read == [f"{index}/{row}" for index, count in enumerate(counts) for row in range(count)]


@given(counts=COUNTS, **READERS)
def test_equal_ranks_leave_out_fewer_samples_than_there_are_ranks(
    counts: list[int], world_size: int, num_workers: int
) -> None:
    ranks = keys_of_all(counts, world_size=world_size, num_workers=num_workers, equal=True)
    read = [key for workers in ranks for keys in workers for key in keys]
    assert len(set(read)) == len(read) == sum(counts) - sum(counts) % world_size
    # Worker by worker, so that batches made by workers are equally many on every rank.
    sizes = {tuple(len(keys) for keys in workers) for workers in ranks}
    assert len(sizes) == 1
    assert max(*sizes.pop(), 0) - min(*map(len, ranks[0])) <= 1 if num_workers > 1 else True


@given(counts=COUNTS, **READERS)
def test_neighbours_share_at_most_one_shard(
    counts: list[int], world_size: int, num_workers: int
) -> None:
    ranks = keys_of_all(counts, world_size=world_size, num_workers=num_workers, equal=False)
    opened = [{key.split("/")[0] for key in keys} for workers in ranks for keys in workers]
    num_opened = sum(map(len, opened))
    assert num_opened <= len(counts) + len(opened) - 1


@given(
    counts=COUNTS, num_nodes=st.integers(1, 4), ranks_each=st.integers(1, 3),
    num_workers=st.integers(1, 3), equal=st.booleans(),
)  # fmt: skip
def test_each_shard_is_read_by_as_few_nodes_as_possible(
    counts: list[int], num_nodes: int, ranks_each: int, num_workers: int, equal: bool
) -> None:
    ranks = keys_of_all(
        counts, world_size=num_nodes * ranks_each, num_workers=num_workers, equal=equal
    )
    nodes = [
        {
            key.split("/")[0]
            for workers in ranks[node * ranks_each : (node + 1) * ranks_each]
            for keys in workers
            for key in keys
        }
        for node in range(num_nodes)
    ]
    # Equal shares begin inside shards: each border between two nodes may cut one shard.
    num_read = len(set().union(*nodes))
    assert sum(map(len, nodes)) <= num_read + num_nodes - 1


@given(count=st.integers(1, 30), data=st.data())
def test_blocks_hold_the_samples_of_their_piece_in_order_and_no_more_bytes_than_they_may(
    count: int, data: st.DataObject
) -> None:
    shard = shard_of(0, count)
    first = data.draw(st.integers(0, count - 1))
    piece = Piece(shard, first, data.draw(st.integers(first + 1, count)))
    each = shard.samples[0].length
    block_bytes = data.draw(st.integers(1, 8 * each))
    blocks = list(cut_blocks(piece, block_bytes))
    extents = [extent_of(block) for block in blocks]
    assert (extents[0][0], extents[-1][1]) == extent_of(piece)
    assert [start for start, _ in extents[1:]] == [end for _, end in extents[:-1]]
    assert all(end - start <= max(block_bytes, each) for start, end in extents)
    most = max(1, block_bytes // each)  # and none is smaller than it need be, but the last
    assert len(blocks) == -(-(piece.stop - piece.first) // most)


@pytest.mark.parametrize(
    "numbers", [{"rank": 1}, {"rank": -1}, {"worker": 2, "num_workers": 2}, {"world_size": 0}]
)
def test_a_reader_that_is_none_of_its_group_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"at least 0 and below their number; got rank"):
        Part(**numbers)
