"""What a build is asked to do. Defaults live here and nowhere else."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.peers.roster import NAMES

CANDIDATE_SETS = ("five", "full+five")
LAYOUTS = ("tensors", "canvas")
CODECS = ("raw", "zstd", "png", "webp", "jpeg")
JPEG_SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
DECODERS = ("pillow", "pillow-simd", "dali")
DEVICES = ("cpu", "gpu")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One `srp-data build-shards` command.

    Attributes:
        source: Folder with `train/` and `val/` class folders, or a .tgz of one.
        out: Folder that the shards and `manifest.json` go to.
        canvas_size: Side of the square canvas, px.
        crop_size: Side of every crop, px.
        glimpse_size: Side of the stored glimpses before padding, px.
        candidates: `five` or `full+five`.
        layout: `tensors` stores every crop; `canvas` stores the canvas and cuts on reading.
        codec: How a canvas is written; only `jpeg` loses anything.
        jpeg_quality: 1 to 100, of the codec `jpeg`.
        jpeg_subsampling: Of its colours; `4:4:4` keeps them all.
        decoder: Who turns files into pixels.
        device: Where it does; only DALI can use a GPU.
        draft: Whether libjpeg may shrink large photos while decoding. Faster, not bit-exact.
        exif: Whether a photo is turned as its EXIF orientation says.
        max_pixels: Largest image that is decoded, px; checked before any pixel is allocated.
        shard_mib: Size that a shard should not exceed, MiB; a guess where a codec compresses.
        workers: Processes, each of which owns whole shards.
        limit: Images per split, drawn by the seed; None takes all.
        seed: Seed of the order of images in the shards.
        max_rejects: Unusable images up to which the build still succeeds.
    """

    source: Path
    out: Path
    canvas_size: int = 336
    crop_size: int = 224
    glimpse_size: int = 64
    candidates: str = "five"
    layout: str = "canvas"
    codec: str = "raw"
    jpeg_quality: int = 95
    jpeg_subsampling: str = "4:4:4"
    decoder: str = "pillow"
    device: str = "cpu"
    draft: bool = False
    exif: bool = True
    max_pixels: int = 100_000_000
    shard_mib: int = 128
    workers: int = os.cpu_count() or 1
    limit: int | None = None
    seed: int = 0
    max_rejects: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is read or written."""
        for option, value, floor in (
            ("--canvas-size", self.canvas_size, 1),
            ("--crop-size", self.crop_size, 1),
            ("--glimpse-size", self.glimpse_size, 1),
            ("--max-pixels", self.max_pixels, 1),
            ("--shard-mib", self.shard_mib, 1),
            ("--workers", self.workers, 1),
            ("--limit", 1 if self.limit is None else self.limit, 1),
            ("--max-rejects", self.max_rejects, 0),
            ("--seed", self.seed, 0),
        ):
            if value < floor:
                raise ConfigError(f"{option} must be at least {floor}; got {value}.")
        for option, name, known in (
            ("--candidates", self.candidates, CANDIDATE_SETS),
            ("--layout", self.layout, LAYOUTS),
            ("--codec", self.codec, CODECS),
            ("--jpeg-subsampling", self.jpeg_subsampling, JPEG_SUBSAMPLINGS),
            ("--decoder", self.decoder, DECODERS),
            ("--device", self.device, DEVICES),
        ):
            if name not in known:
                raise ConfigError(f"{option} must be one of {', '.join(known)}; got {name!r}.")
        self._check_sizes()
        self._check_codec()
        self._check_decoder()

    def _check_sizes(self) -> None:
        if self.crop_size > self.canvas_size:
            raise ConfigError(
                f"crop size must fit the canvas; got --crop-size {self.crop_size} px for "
                f"--canvas-size {self.canvas_size} px. Lower --crop-size or raise --canvas-size."
            )
        if self.glimpse_size > self.crop_size:
            raise ConfigError(
                f"glimpse size must fit the crop; got --glimpse-size {self.glimpse_size} px for "
                f"--crop-size {self.crop_size} px. Lower --glimpse-size."
            )

    def _check_codec(self) -> None:
        if self.layout == "tensors" and self.codec != "raw":
            raise ConfigError(
                f"--layout tensors is raw; got --codec {self.codec}. "
                f"Drop --codec {self.codec}, or take --layout canvas."
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality must be 1 to 100; got {self.jpeg_quality}.")
        for option, value, default in (
            ("--jpeg-quality", self.jpeg_quality, BuildConfig.jpeg_quality),
            ("--jpeg-subsampling", self.jpeg_subsampling, BuildConfig.jpeg_subsampling),
        ):
            if self.codec != "jpeg" and value != default:
                raise ConfigError(
                    f"{option} needs --codec jpeg; got {value} with --codec {self.codec}. "
                    f"Add --codec jpeg, which is lossy, or drop {option}."
                )

    def _check_decoder(self) -> None:
        if self.decoder != "dali" and self.device == "gpu":
            raise ConfigError(
                f"--device gpu needs --decoder dali; got --decoder {self.decoder}. "
                "Add --decoder dali, or drop --device gpu."
            )
        if self.decoder == "dali" and self.draft:
            raise ConfigError(
                "--draft needs --decoder pillow or pillow-simd; got --decoder dali. Drop --draft."
            )


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
    workers: int = os.cpu_count() or 1
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
    workers: int = os.cpu_count() or 1
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
