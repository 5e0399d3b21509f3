"""Specs of shards that no build was asked for, and what decoders make of files."""

from collections.abc import Iterable
from typing import Any

from pipeline.common.errors import ImageError
from pipeline.decode.rules import Decoder, Views
from pipeline.format.spec import DataSpec


def spec_of(
    candidates: str = "five", *, canvas_px: int, crop_px: int, glimpse_px: int = 1, **options: Any
) -> DataSpec:
    rest = {
        "layout": "canvas", "decoder": "pillow", "exif": True, "max_pixels": 10**8, "seed": 0,
        "limit": None, "shard_mib": 128,
    }  # fmt: skip
    return DataSpec(
        canvas_size=canvas_px,
        crop_size=crop_px,
        glimpse_size=glimpse_px,
        candidates=candidates,
        **(rest | options),
    )


def decoded(decoder: Decoder, files: Iterable[bytes]) -> list[Views | ImageError]:
    """Decode files together; each result keeps its tag."""
    tags, results = zip(*decoder.decode(enumerate(files)), strict=True) if files else ((), ())
    assert tags == tuple(range(len(results)))
    return list(results)
