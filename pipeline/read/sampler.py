"""Which samples, in which order, on which rank: pure arithmetic.

The order is global and depends only on the seed and the epoch.
"""

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


def training_batches(
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
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

    Returns:
        Int64 `(steps, batch_size)`.
    """
    rest = np.random.default_rng((seed, epoch)).permutation(num_samples)[start:]
    steps = len(rest) // (batch_size * world_size)
    used = rest[: steps * batch_size * world_size]
    return used.reshape(steps, world_size, batch_size)[:, rank]


def evaluation_batches(
    num_samples: int, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Indices]:
    """List one rank's batches of a split, in order; the ranks together see each sample once."""
    mine = np.arange(rank, num_samples, world_size)
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
