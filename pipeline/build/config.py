"""What a build is asked to do. Defaults live here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError
from pipeline.format.crops import CANDIDATE_SETS
from pipeline.format.spec import CODECS, DECODERS, DEVICES, JPEG_SUBSAMPLINGS, LAYOUTS


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One `srp-data build-shards` command.

    Attributes:
        source: Folder with `train/` and `val/` class folders, or a .tgz of one.
        out: Folder that the shards and `manifest.json` go to.
        canvas_size: Side of the square canvas, px.
        crop_size: Side of every crop, px.
        glimpse_size: Side of the stored glimpses before padding, px.
        candidates: One of `CANDIDATE_SETS`; see `pipeline.format.crops.place_crops`.
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
        image_timeout_s: Without another image through, after which a worker is ended, s.
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
    workers: int = num_usable()
    image_timeout_s: int = 300
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
            ("--image-timeout", self.image_timeout_s, 1),
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
