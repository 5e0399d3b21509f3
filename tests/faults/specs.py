"""Specs of shards that no build was asked for."""

from typing import Any

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
