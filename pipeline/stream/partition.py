"""Which rank and worker streams which samples of an epoch, as plain arithmetic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.common.errors import ConfigError
from pipeline.format.index import ShardEntry


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reader among those that share an epoch.

    Attributes:
        rank: Rank of the process, from 0.
        world_size: Number of processes.
        worker: Which of the process's reading workers, from 0.
        num_workers: Workers of each process.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Check that no two readers read the same samples."""
        if not (0 <= self.rank < self.world_size and 0 <= self.worker < self.num_workers):
            raise ConfigError(
                f"rank and worker must be at least 0 and below their number; got rank {self.rank} "
                f"of {self.world_size}, worker {self.worker} of {self.num_workers}. "
                "Count both from 0."
            )

    @property
    def index(self) -> int:
        """Position among all readers."""
        return self.rank * self.num_workers + self.worker


class Piece(NamedTuple):
    """Samples of one shard from `first` to `stop`, which is excluded."""

    shard: ShardEntry
    first: int
    stop: int


def share_of(num_samples: int, part: Part, *, equal: bool) -> range:
    """Give one reader's positions in the epoch's order.

    Each rank takes one stretch of the order, and each of its workers one stretch of that. Stretches
    therefore differ by at most one sample, and neighbours share at most one shard.

    Args:
        num_samples: Samples of the split.
        part: The reader.
        equal: Whether every rank gets the same number, so that all take equal steps. The last
            `num_samples % world_size` samples of the order are then left out; they differ from
            epoch to epoch. If false, every sample is read once.
    """
    usable = num_samples - num_samples % part.world_size if equal else num_samples
    start, stop = _stretch(0, usable, part.rank, part.world_size)
    return range(*_stretch(start, stop, part.worker, part.num_workers))


def _stretch(start: int, stop: int, index: int, count: int) -> tuple[int, int]:
    length = stop - start
    return start + length * index // count, start + length * (index + 1) // count


def cut_pieces(shards: Sequence[ShardEntry], share: range) -> Iterator[Piece]:
    """Find which samples of which shards a share consists of, in order."""
    position = 0
    for shard in shards:
        count = len(shard.samples)
        first, stop = max(share.start - position, 0), min(share.stop - position, count)
        if first < stop:
            yield Piece(shard, first, stop)
        position += count


def cut_blocks(piece: Piece, block_bytes: int) -> Iterator[Piece]:
    """Cut a piece into pieces of whole samples.

    Args:
        piece: Samples of a shard.
        block_bytes: Largest size of a block; a larger sample is a block of its own.
    """
    first, start = piece.first, 0
    for index, sample in enumerate(piece.shard.samples[piece.first : piece.stop], piece.first):
        if index == first:
            start = sample.offset
        elif sample.offset + sample.length > start + block_bytes:
            yield Piece(piece.shard, first, index)
            first, start = index, sample.offset
    yield Piece(piece.shard, first, piece.stop)


def extent_of(piece: Piece) -> tuple[int, int]:
    """Give the offsets where a piece's samples begin and end in its shard."""
    samples = piece.shard.samples
    last = samples[piece.stop - 1]
    return samples[piece.first].offset, last.offset + last.length
