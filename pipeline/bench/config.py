"""What a bench is asked to do. Defaults live here and nowhere else."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.loaders.registry import NAMES
from pipeline.build.config import BuildConfig
from pipeline.command.settings import check_settings, flag_of, setting, settings_of
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError
from pipeline.format.spec import CODECS

_ROUNDS = "Turns of each contender, after one warm-up turn."
_JSON = "File for the figures; - prints them instead of the table.  [default: none]"
_USABLE = "CPUs this process may use"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """One `srp-data bench build` command.

    Attributes:
        source: As for a build.
    """

    source: Path
    images: int = setting(1000, "Images to measure on, drawn by the seed.", low=1)
    rounds: int = setting(3, _ROUNDS, low=1)
    workers: int = setting(
        num_usable(),
        "Processes of a build; builds with one are measured too.",
        flags="-j --workers",
        low=1,
        shown=_USABLE,
    )
    canvas_size: int = setting(BuildConfig.canvas_size, "Side of the square canvas, px.", low=1)
    crop_size: int = setting(BuildConfig.crop_size, "Side of every crop, px.", low=1)
    glimpse_size: int = setting(BuildConfig.glimpse_size, "Side of a glimpse, px.", low=1)
    beside: Path | None = setting(
        None,
        "Python of another environment with srp, such as make simd's; its turns alternate with "
        "those of this one.  [default: none]",
    )
    json: Path | None = setting(None, _JSON)
    seed: int = setting(0, "Seed of the draw.", low=0)

    def __post_init__(self) -> None:
        """Check everything before anything is measured."""
        check_settings(self)
        self.build(source=self.source, out=Path(), workers=self.workers)
        _require_writable("--json", self.json)

    def build(self, *, source: Path, out: Path, **options: Any) -> BuildConfig:
        """Make the build of these sizes."""
        return BuildConfig(
            source=source,
            out=out,
            canvas_size=self.canvas_size,
            crop_size=self.crop_size,
            glimpse_size=self.glimpse_size,
            candidates="five",  # which the predecessor cuts as well
            seed=self.seed,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class LoadBenchConfig:
    """One `srp-data bench load` command.

    Attributes:
        shards: Folder of shards in the canvas layout, with the candidates `five`.
    """

    shards: Path
    images: int = setting(1000, "Images of the train split that every loader gets.", low=1)
    rounds: int = setting(3, _ROUNDS, low=1)
    workers: int = setting(
        num_usable(),
        "Threads or processes that load; one is measured too.",
        flags="-j --workers",
        low=1,
        shown=_USABLE,
    )
    batch: int = setting(64, "Images in a batch.", low=1)
    seconds: float = setting(2.0, "Least time that a turn measures, s.", low=0.001, high=600.0)
    source: Path | None = setting(
        None,
        "What the shards were built from, for loaders that read the original images.  "
        "[default: none, which leaves those loaders out]",
    )
    loader: tuple[str, ...] = setting(
        (),
        "Loader to measure; may be repeated.  [default: all]",
        choices=NAMES,
        multiple=True,
    )
    python: tuple[str, ...] = setting(
        (),
        "NAME=PYTHON: the Python of a loader's own environment, such as make bench-envs makes; "
        "may be repeated.  [default: this one]",
        multiple=True,
    )
    json: Path | None = setting(None, _JSON)
    svg: Path | None = setting(None, "File for a chart.  [default: none]")

    def __post_init__(self) -> None:
        """Check everything before anything is measured."""
        check_settings(self)
        for text in self.python:
            name, _, path = text.partition("=")
            if not path:
                raise ConfigError(f"--python must be NAME=PYTHON; got {text!r}.")
            if name not in NAMES:
                raise ConfigError(f"--python must name one of {', '.join(NAMES)}; got {name!r}.")
        _require_writable("--json", self.json)
        _require_writable("--svg", self.svg)

    @property
    def loaders(self) -> tuple[str, ...]:
        """Names of the loaders to measure."""
        return self.loader or NAMES

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that each loader is measured with, in order."""
        return tuple(sorted({1, self.workers}))

    def python_of(self, loader: str) -> Path:
        """Give the interpreter of a loader: this one, unless `--python` names another."""
        others = dict(text.split("=", 1) for text in self.python)
        # Absolute, since it is started in another folder. A link is not followed: the link to an
        # interpreter is what makes an environment.
        return Path(others.get(loader, sys.executable)).absolute()


@dataclass(frozen=True, kw_only=True)
class CodecBenchConfig:
    """One `srp-data bench codecs` command.

    Attributes:
        shards: Folder of shards in the canvas layout with the codec `raw`.
    """

    shards: Path
    images: int = setting(300, "Canvases to measure on.", low=1)

    def __post_init__(self) -> None:
        """Check everything before anything is measured."""
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ScaleBenchConfig:
    """One `srp-data bench scale` command.

    Attributes:
        shards: Folder of shards in the canvas layout.
    """

    shards: Path
    sizes: tuple[int, ...] = setting(
        (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
        "Samples of a split; may be repeated.",
        flags="--size",
        low=200,
        multiple=True,
    )
    workers: int = setting(
        num_usable(), "Threads that read.", flags="-j --workers", low=1, shown=_USABLE
    )
    rounds: int = setting(3, "Fresh processes for each size.", low=1)

    def __post_init__(self) -> None:
        """Check everything before anything is measured."""
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class PlanBenchConfig:
    """One `srp-data bench plan` command.

    Attributes:
        shards: Folder of shards like those that are planned; None plans `five` at 336 and 224 px.
    """

    shards: Path | None = None
    sizes: tuple[int, ...] = setting(
        (1_331_167, 14_197_122, 1_000_000_000),
        "Images to plan for; may be repeated.",
        flags="--size",
        low=1,
        multiple=True,
    )
    codec: str | None = setting(
        None, "Codec whose limits are listed.", choices=CODECS, shown="that of SHARDS, or raw"
    )
    shard_mib: int | None = setting(
        None, "Size of a shard, MiB.", low=1, shown="that of SHARDS, or of a build"
    )
    core_rate: float = setting(272.0, "Images/s that one core builds with --codec raw.", low=0.01)
    gpu_decode_rate: float | None = setting(
        None, "Images/s that one GPU decodes in a build.  [default: none, no column]", low=0.01
    )
    gpu_rate: float = setting(10_000.0, "Images/s that one GPU trains on.", low=0.01)
    list_rate: float = setting(40_000.0, "Files/s that a build lists.", low=0.01)
    ram_gib: float = setting(64.0, "Memory of a machine, GiB.", low=0.01)
    disk_gib: float = setting(2_000.0, "Disk of a machine, GiB.", low=0.01)
    net_gbit: float = setting(25.0, "Network of a machine with eight GPUs, Gbit/s.", low=0.01)
    get_mib: float = setting(8.0, "Bytes of one GET request, MiB.", low=0.001)
    price_month: float = setting(0.023, "Example price of storage, $ a GB and month.", low=0.0)
    price_gets: float = setting(0.0004, "Example price of 1,000 GET requests, $.", low=0.0)
    price_egress: float = setting(
        0.09, "Example price of reading out of the provider's region, $ a GB.", low=0.0
    )
    epoch_budget: float = setting(1_000.0, "What reading one epoch may cost, $.", low=0.0)
    json: Path | None = setting(None, _JSON)

    def __post_init__(self) -> None:
        """Check everything before anything is computed."""
        check_settings(self)
        for name, (_, default) in settings_of(self).items():
            if isinstance(default, float) and math.isinf(getattr(self, name)):
                raise ConfigError(
                    f"{flag_of(self, name)} must be finite; got {getattr(self, name)}. "
                    "Give a number, or leave it out."
                )
        _require_writable("--json", self.json)


def _require_writable(option: str, path: Path | None) -> None:
    if path and path != Path("-") and (path.is_dir() or not path.parent.is_dir()):
        raise ConfigError(
            f"{option} must be a file in a folder that exists; got {path}. Make the folder."
        )
