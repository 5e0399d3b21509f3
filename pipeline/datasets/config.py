"""What `srp-data sample` and `scatter` are asked to make: every option, with its default."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.build.config import BuildConfig
from pipeline.command.settings import check_settings, setting
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError

MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """One `srp-data sample` command: scenes drawn in the folder `out`."""

    out: Path
    train: int = setting(80, "Images of each class in train/.", low=1, high=100_000)
    val: int = setting(20, "Images of each class in val/.", low=1, high=100_000)
    size_px: int = setting(224, "Side of the square images, px.", flags="--size", low=32, high=4096)
    smallest: float = setting(
        0.2, "Longer side of the smallest object, as a fraction of --size.", low=0.05, high=0.9
    )
    largest: float = setting(
        0.45, "Longer side of the largest object, as a fraction of --size.", low=0.05, high=0.9
    )
    seed: int = setting(0, "Seed of every random choice.", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        """Check the ranges before anything is written."""
        check_settings(self)
        _check_sides(self.smallest, self.largest)


@dataclass(frozen=True, kw_only=True)
class ScatterConfig:
    """One `srp-data scatter` command, from the images at `source` to the folder `out`."""

    source: Path
    out: Path
    size_px: int = setting(
        336, "Side of the square pictures, px.", flags="--size", low=32, high=4096
    )
    smallest: float = setting(
        0.25, "Longer side of the smallest image, as a fraction of --size.", low=0.01, high=1
    )
    largest: float = setting(
        0.4, "Longer side of the largest image, as a fraction of --size.", low=0.01, high=1
    )
    seed: int = setting(0, "Seed of places, scales and textures.", low=0, high=MAX_SEED)
    max_pixels: int = setting(BuildConfig.max_pixels, "Largest image that is accepted, px.", low=1)
    workers: int = setting(
        num_usable(),
        "Threads.",
        flags="-j --workers",
        low=1,
        high=10_000,
        shown="CPUs this process may use",
    )

    def __post_init__(self) -> None:
        """Check the ranges before anything is written."""
        check_settings(self)
        _check_sides(self.smallest, self.largest)


def _check_sides(smallest: float, largest: float) -> None:
    if largest < smallest:
        raise ConfigError(
            f"--largest must be at least --smallest; got --largest {largest} for --smallest "
            f"{smallest}. Raise --largest or lower --smallest."
        )
