"""What `srp-data sample` and `scatter` are asked to make. Defaults live here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.build.config import BuildConfig
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """One `srp-data sample` command.

    Attributes:
        train: Images per class in `train/`.
        val: Images per class in `val/`.
        size_px: Side of the square images, px.
        seed: Seed of everything that is drawn.
    """

    train: int = 80
    val: int = 20
    size_px: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is written."""
        for option, value, floor, ceiling in (
            ("--train", self.train, 1, 100_000),
            ("--val", self.val, 1, 100_000),
            ("--size", self.size_px, 32, 4096),
            ("--seed", self.seed, 0, 2**32 - 1),
        ):
            if not floor <= value <= ceiling:
                raise ConfigError(f"{option} must be {floor} to {ceiling}; got {value}.")


@dataclass(frozen=True, kw_only=True)
class ScatterConfig:
    """One `srp-data scatter` command.

    Attributes:
        source: As for a build.
        out: Folder to make; absent or empty.
        size_px: Side of the square pictures, px.
        smallest: Longer side of an image over the side of the picture, at least.
        largest: The same, at most.
        seed: Of places, scales and textures.
        workers: Threads.
        max_pixels: Largest image that is decoded, px.
    """

    source: Path
    out: Path
    size_px: int = 336
    smallest: float = 0.25
    largest: float = 0.4
    seed: int = 0
    workers: int = num_usable()
    max_pixels: int = BuildConfig.max_pixels

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is written."""
        for option, value, floor, ceiling in (
            ("--size", self.size_px, 32, 4096),
            ("--smallest", self.smallest, 0.01, 1),
            ("--largest", self.largest, self.smallest, 1),
            ("--seed", self.seed, 0, 2**32 - 1),
            ("--workers", self.workers, 1, 10_000),
        ):
            if not floor <= value <= ceiling:
                raise ConfigError(f"{option} must be {floor} to {ceiling}; got {value}.")
