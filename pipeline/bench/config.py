"""What a bench is asked to do. Defaults live here and nowhere else."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench.loaders.registry import NAMES
from pipeline.build.config import BuildConfig
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """One `srp-data bench build` command.

    Attributes:
        source: As for a build.
        images: Images that are measured, drawn by the seed.
        rounds: Turns of each contender that count.
        workers: Processes of the builds that are measured beside those with one.
        canvas_size: Side of the square canvas, px.
        crop_size: Side of every crop, px.
        glimpse_size: Side of the glimpses, px.
        beside: Python of another environment, whose decoders take turns with this one's.
        json: File that the figures go to as well.
        seed: Seed of the draw.
    """

    source: Path
    images: int = 1000
    rounds: int = 3
    workers: int = num_usable()
    canvas_size: int = BuildConfig.canvas_size
    crop_size: int = BuildConfig.crop_size
    glimpse_size: int = BuildConfig.glimpse_size
    beside: Path | None = None
    json: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is measured."""
        for option, value in (
            ("--images", self.images),
            ("--rounds", self.rounds),
        ):
            if value < 1:
                raise ConfigError(f"{option} must be at least 1; got {value}.")
        self.build(source=self.source, out=Path(), decoder="pillow", workers=self.workers)
        _require_writable("--json", self.json)

    def build(self, *, source: Path, out: Path, **options: Any) -> BuildConfig:
        """Make the build of these sizes."""
        return BuildConfig(
            source=source,
            out=out,
            canvas_size=self.canvas_size,
            crop_size=self.crop_size,
            glimpse_size=self.glimpse_size,
            seed=self.seed,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class LoadBenchConfig:
    """One `srp-data bench load` command.

    Attributes:
        shards: Folder of shards in the canvas layout, with the candidates `five`.
        images: Images of the train split that every loader is given.
        rounds: Turns of each contender that count.
        workers: Threads or processes that load, beside turns with one.
        batch: Images in a batch.
        seconds: Least time that a turn measures, s.
        source: What the shards were built from, for loaders that read the original images.
        peer: Loaders to measure.
        python: `NAME=PYTHON` for loaders that live in another environment.
        json: File that the figures go to as well.
        svg: File that a chart goes to.
    """

    shards: Path
    images: int = 1000
    rounds: int = 3
    workers: int = num_usable()
    batch: int = 64
    seconds: float = 2.0
    source: Path | None = None
    peer: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    json: Path | None = None
    svg: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is measured."""
        for option, value in (
            ("--images", self.images),
            ("--rounds", self.rounds),
            ("--workers", self.workers),
            ("--batch", self.batch),
        ):
            if value < 1:
                raise ConfigError(f"{option} must be at least 1; got {value}.")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"--seconds must be a positive number; got {self.seconds}.")
        for text in self.python:
            name, _, path = text.partition("=")
            if not path:
                raise ConfigError(f"--python must be NAME=PYTHON; got {text!r}.")
            _require_peer("--python", name)
        for name in self.peer:
            _require_peer("--peer", name)
        _require_writable("--json", self.json)
        _require_writable("--svg", self.svg)

    @property
    def peers(self) -> tuple[str, ...]:
        """Names of the loaders to measure."""
        return self.peer or NAMES

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that each loader is measured with, in order."""
        return tuple(sorted({1, self.workers}))

    def python_of(self, peer: str) -> Path:
        """Give the interpreter of a loader: this one, unless `--python` names another."""
        others = dict(text.split("=", 1) for text in self.python)
        # Absolute, since it is started in another folder; a link that leads to an interpreter
        # is what makes an environment, so it is not followed.
        return Path(others.get(peer, sys.executable)).absolute()


def _require_peer(option: str, name: str) -> None:
    if name not in NAMES:
        raise ConfigError(f"{option} must name one of {', '.join(NAMES)}; got {name!r}.")


def _require_writable(option: str, path: Path | None) -> None:
    if path and path != Path("-") and (path.is_dir() or not path.parent.is_dir()):
        raise ConfigError(
            f"{option} must be a file in a folder that exists; got {path}. Make the folder."
        )
