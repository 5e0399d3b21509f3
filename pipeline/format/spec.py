"""What decides the bytes of a sample, and what can be chosen."""

from dataclasses import dataclass
from functools import cached_property

from pipeline.format.crops import CropLayout, place_crops

LAYOUTS = ("tensors", "canvas")
CODECS = ("raw", "zstd", "png", "webp", "jpeg")
JPEG_SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
DECODERS = ("pillow", "pillow-simd", "dali")
DEVICES = ("cpu", "gpu")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What decides the bytes of samples: equal specs and sources give equal shards.

    Sizes are in px. `decoder_library` names libraries and versions, since another libjpeg may
    decode to other pixels, and so does `codec_library`, since another may encode to other bytes.
    Records of older runs lack the fields that have a default.
    """

    canvas_size: int
    crop_size: int
    glimpse_size: int
    candidates: str
    layout: str
    decoder: str
    exif: bool
    max_pixels: int
    seed: int
    limit: int | None
    shard_mib: int
    codec: str = "raw"
    codec_library: str = ""
    jpeg_quality: int | None = None
    jpeg_subsampling: str | None = None
    device: str = "cpu"
    draft: bool = False
    decoder_library: str = ""

    @cached_property
    def crop_layout(self) -> CropLayout:
        """The K candidates of every canvas."""
        return place_crops(self.candidates, canvas_px=self.canvas_size, crop_px=self.crop_size)
