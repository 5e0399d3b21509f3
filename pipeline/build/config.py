"""What a build is asked to do: every option of `srp-data build-shards`, with its default."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.command.settings import check_settings, setting
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError
from pipeline.engines import ENGINES
from pipeline.format.crops import CANDIDATE_SETS, CANDIDATES_TEXT
from pipeline.format.spec import CODECS, DECODERS, DEVICES, JPEG_SUBSAMPLINGS, LAYOUTS
from pipeline.remote.address import WRITABLE_SCHEMES, RemoteFolder

_DATASET = re.compile(r"hf://datasets/[^/]+/[^/]+")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One `srp-data build-shards` command, from the images at `source` to the folder `out`.

    Each is a path or an address.
    """

    source: Path | RemoteFolder
    out: Path | RemoteFolder
    canvas_size: int = setting(336, "Side of the square canvas, px.", low=1)
    crop_size: int = setting(224, "Side of every crop, px.", low=1)
    glimpse_size: int = setting(64, "Side of a glimpse before padding, px.", low=1)
    candidates: str = setting(
        "full+five", f"Crops of each image: {CANDIDATES_TEXT}.", choices=CANDIDATE_SETS
    )
    layout: str = setting(
        "canvas", "Store every crop, or the canvas once and cut when reading.", choices=LAYOUTS
    )
    codec: str = setting(
        "raw",
        "Compression of a canvas: raw is fastest, zstd, png and webp are lossless, jpeg is lossy.",
        choices=CODECS,
    )
    jpeg_quality: int = setting(95, "Quality of --codec jpeg.", low=1, high=100)
    jpeg_subsampling: str = setting(
        "4:4:4",
        "Chroma subsampling of --codec jpeg; 4:4:4 keeps every colour.",
        choices=JPEG_SUBSAMPLINGS,
    )
    decoder: str = setting("pillow", "Library that decodes the images.", choices=DECODERS)
    device: str = setting("cpu", "Device that decodes; gpu needs dali.", choices=DEVICES)
    draft: bool = setting(
        False, "Let libjpeg shrink large photos while decoding: faster, not bit-exact."
    )
    exif: bool = setting(True, "Rotate photos as their EXIF orientation says.")
    max_pixels: int = setting(100_000_000, "Largest image that is not rejected, px.", low=1)
    shard_mib: int = setting(
        128, "Largest size of a shard, MiB; an estimate where --codec compresses.", low=1
    )
    workers: int = setting(
        num_usable(),
        "Worker processes; each writes whole shards. With --device gpu they share the GPU; on Ray, "
        "so many share each GPU. With --ray-address the cluster's CPUs count.",
        flags="-j --workers",
        low=1,
        shown="CPUs this process may use",
    )
    engine: str = setting(
        "local", "What runs the workers: this machine, or Ray (srp[ray]).", choices=ENGINES
    )
    ray_address: str | None = setting(
        None, "Ray cluster to use, auto or HOST:PORT.", shown="one on this machine"
    )
    scratch: Path | None = setting(
        None,
        "Folder for shards on their way to an OUT at an address, one for each worker; on Ray, of "
        "each node.",
        shown="in the user's cache",
    )
    image_timeout_s: int = setting(
        300,
        "Seconds without a finished image, or for sending a shard to an address, after which a "
        "worker is killed and its shard retried.",
        flags="--image-timeout",
        low=1,
    )
    limit: int | None = setting(None, "Images per split, drawn by the seed.", low=1, shown="all")
    seed: int = setting(0, "Seed of the order of images.", low=0)
    max_rejects: int = setting(0, "Unusable images that a build may leave out.", low=0)

    def __post_init__(self) -> None:
        """Check ranges, choices and what must fit together, before anything is read or written."""
        check_settings(self)
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
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError(
                f"--ray-address needs --engine ray; got {self.ray_address} with --engine "
                f"{self.engine}. Add --engine ray, or drop --ray-address."
            )
        self._check_places()
        self._check_codec()
        self._check_decoder()

    def _check_places(self) -> None:
        require_writable(self.out)
        if self.scratch is not None and not isinstance(self.out, RemoteFolder):
            raise ConfigError(
                f"--scratch needs an OUT at an address; got {self.scratch} for the folder "
                f"{self.out}. Drop --scratch: shards are written where they stay."
            )

    def _check_codec(self) -> None:
        if self.layout == "tensors" and self.codec != "raw":
            raise ConfigError(
                f"--layout tensors is raw; got --codec {self.codec}. "
                f"Drop --codec {self.codec}, or use --layout canvas."
            )
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


def require_writable(out: Path | RemoteFolder) -> None:
    """Check that OUT is of a kind that can be written; nothing is asked.

    Raises:
        ConfigError: If it is at a web server, or in no dataset of Hugging Face.
    """
    if not isinstance(out, RemoteFolder):
        return
    if out.scheme not in WRITABLE_SCHEMES:
        raise ConfigError(
            f"OUT must be a place that can be written; got {out}, and a web server only gives "
            "files. Name a folder, or an address of s3, gs or hf."
        )
    if out.scheme == "hf" and not _DATASET.match(out.address):
        raise ConfigError(
            f"OUT at hf must be in a dataset; got {out}. Name hf://datasets/OWNER/NAME."
        )


def require_path(place: Path | RemoteFolder, what: str) -> Path:
    """Give the path of a place on this machine.

    Raises:
        ConfigError: If it is at an address, which `what` does not take.
    """
    if isinstance(place, RemoteFolder):
        raise ConfigError(
            f"{what} needs a folder on this machine, or on a disk that it shares; got {place}. "
            "Name a path, or build it whole: srp-data build-shards SOURCE OUT"
        )
    return place
