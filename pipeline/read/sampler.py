"""Which samples, in which order, on which rank: pure arithmetic.

The order is global and depends only on the seed and the epoch. Where a cache cannot hold all
shards, it is global within windows of shards, and depends on the window's size too.

Axes: N samples, S shards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import ConfigError

Indices = NDArray[np.int64]


def steps_per_epoch(num_samples: int, *, batch_size: int, world_size: int) -> int:
    """Count the steps of every rank; samples that do not fill a step are left out.

    Raises:
        ConfigError: If there is no full step.
    """
    steps = num_samples // (batch_size * world_size)
    if not steps:
        raise ConfigError(
            f"a step must not need more images than there are; got --batch-size {batch_size} "
            f"on {world_size} processes for {num_samples} images. Lower --batch-size."
        )
    return steps


def window_bytes(sizes: Sequence[int], limit_bytes: int | None) -> int | None:
    """Give the size of the windows in which an epoch reads shards; None reads all at once.

    A window takes half of the room, so that the next one can be fetched meanwhile.

    Args:
        sizes: Of a split's shards, bytes.
        limit_bytes: Room for them; None for all.
    """
    return None if limit_bytes is None or sum(sizes) <= limit_bytes else limit_bytes // 2


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Shards that an epoch reads together: shuffled, then cut where a window is full.

    Attributes:
        shards_N: Shard of each sample.
        bytes_S: Size of each shard.
        window_bytes: Largest size of a window; a larger shard is a window of its own.
    """

    shards_N: Indices
    bytes_S: Indices
    window_bytes: int

    def shuffled(self, generator: np.random.Generator) -> Indices:
        """Put all samples in the order of one epoch."""
        by_shard_N = np.argsort(self.shards_N, kind="stable")
        ends = np.bincount(self.shards_N, minlength=len(self.bytes_S)).cumsum()
        of_shard = np.split(by_shard_N, ends[:-1])
        windows = list(self._cut(generator.permutation(len(self.bytes_S))))
        samples = (np.concatenate([of_shard[shard] for shard in window]) for window in windows)
        return np.concatenate([generator.permutation(window) for window in samples])

    def _cut(self, order_S: Indices) -> Iterator[list[int]]:
        """Cut shards in order into windows."""
        window: list[int] = []
        size = 0
        for shard in order_S.tolist():
            more = int(self.bytes_S[shard])
            if window and size + more > self.window_bytes:
                yield window
                window, size = [], 0
            window.append(shard)
            size += more
        yield window


def training_batches(
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    windows: Windows | None = None,
) -> Indices:
    """List one rank's batches of an epoch, or of the rest of it.

    Ranks share no sample and take the same number of steps.

    Args:
        num_samples: Samples of the split.
        batch_size: Samples per step and rank.
        seed: Seed of the shuffle.
        epoch: Epoch; each has an order of its own.
        rank: This rank.
        world_size: Number of ranks.
        start: Samples of the epoch that all ranks together have already seen.
        windows: Which samples are shuffled together; None shuffles all.

    Returns:
        Int64 `(steps, batch_size)`.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(num_samples) if windows is None else windows.shuffled(generator)
    rest = order[start:]
    steps = len(rest) // (batch_size * world_size)
    used = rest[: steps * batch_size * world_size]
    return used.reshape(steps, world_size, batch_size)[:, rank]


def evaluation_batches(
    num_samples: int, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Indices]:
    """List one rank's batches of a split, in order; the ranks together see each sample once."""
    mine = np.arange(rank, num_samples, world_size)
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
