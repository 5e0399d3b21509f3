"""Who streams what: an epoch's samples dealt out to ranks and workers, as plain arithmetic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.common.errors import ConfigError
from pipeline.format.index import ShardEntry


@dataclass(frozen=True, kw_only=True)
class Part:
    """One reader among those that share an epoch.

    Attributes:
        rank: Of the process, from 0.
        world_size: Processes.
        worker: Of the process's reading workers, from 0.
        num_workers: Workers of each process.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        """Refuse a reader that would read another's samples."""
        if not (0 <= self.rank < self.world_size and 0 <= self.worker < self.num_workers):
            raise ConfigError(
                f"ranks and workers count from 0 and below their number; got rank {self.rank} of "
                f"{self.world_size}, worker {self.worker} of {self.num_workers}. Give each its own."
            )

    @property
    def index(self) -> int:
        """Position among all readers."""
        return self.rank * self.num_workers + self.worker


class Piece(NamedTuple):
    """Samples `first` to `stop`, exclusive, of one shard."""

    shard: ShardEntry
    first: int
    stop: int


def share_of(num_samples: int, part: Part, *, equal: bool) -> range:
    """Place one reader's samples in the epoch's order.

    Each rank takes one stretch of the order, and each of its workers one stretch of that. Sizes
    therefore differ by one sample at most, and neighbours share at most one shard.

    Args:
        num_samples: Of the split.
        part: The reader.
        equal: Whether every rank gets the same number, so that all take equal steps; then the
            last `num_samples % world_size` samples of the order are left out, which are others in
            each epoch. Otherwise every sample is read once.
    """
    usable = num_samples - num_samples % part.world_size if equal else num_samples
    start, stop = _stretch(0, usable, part.rank, part.world_size)
    return range(*_stretch(start, stop, part.worker, part.num_workers))


def _stretch(start: int, stop: int, index: int, count: int) -> tuple[int, int]:
    length = stop - start
    return start + length * index // count, start + length * (index + 1) // count


def cut_pieces(shards: Sequence[ShardEntry], share: range) -> Iterator[Piece]:
    """Find the shards that hold a share of the samples, and what of each is meant."""
    position = 0
    for shard in shards:
        count = len(shard.samples)
        first, stop = max(share.start - position, 0), min(share.stop - position, count)
        if first < stop:
            yield Piece(shard, first, stop)
        position += count
