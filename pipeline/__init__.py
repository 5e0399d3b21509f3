"""srp-data: images in, WebDataset shards of crops and glimpses out.

What other programs need is imported from here, each name with its module when it is first used:
`import pipeline` itself loads nothing. `README.md` has an example.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.build.build import build_shards
    from pipeline.build.config import BuildConfig
    from pipeline.common.errors import SrpError
    from pipeline.datasets.writer import BOX_HEADER, ObjectBox
    from pipeline.format.crops import CANDIDATES_TEXT, FULL, Box, CropLayout, place_crops
    from pipeline.format.manifest import Manifest
    from pipeline.format.sample import Sample
    from pipeline.format.spec import DataSpec
    from pipeline.photos.find import find_photos
    from pipeline.photos.read import Photo, PhotoSpec, decoder_library, read_photos
    from pipeline.pixels import Pixels
    from pipeline.read.collate import BatchSpec
    from pipeline.read.loader import ArrayBatch, BatchLoader
    from pipeline.read.reader import ShardReader
    from pipeline.read.sampler import (
        Indices,
        evaluation_batches,
        steps_per_epoch,
        training_batches,
    )
    from pipeline.sources.folder import count_images, open_source
    from pipeline.stream.folder import ShardFolder
    from pipeline.stream.partition import Part
    from pipeline.stream.store import open_store
    from pipeline.stream.stream import SampleStream
    from pipeline.verify.verify import verify_shards

__all__ = [
    "BOX_HEADER", "CANDIDATES_TEXT", "FULL", "ArrayBatch", "BatchLoader", "BatchSpec", "Box",
    "BuildConfig", "CropLayout", "DataSpec", "Indices", "Manifest", "ObjectBox", "Part", "Photo",
    "PhotoSpec", "Pixels", "Sample", "SampleStream", "ShardFolder", "ShardReader", "SrpError",
    "build_shards", "count_images", "decoder_library", "evaluation_batches", "find_photos",
    "open_source", "open_store", "place_crops", "read_photos", "steps_per_epoch",
    "training_batches", "verify_shards",
]  # fmt: skip

_HOMES = {
    "build.build": ("build_shards",),
    "build.config": ("BuildConfig",),
    "common.errors": ("SrpError",),
    "datasets.writer": ("BOX_HEADER", "ObjectBox"),
    "format.crops": ("CANDIDATES_TEXT", "FULL", "Box", "CropLayout", "place_crops"),
    "format.manifest": ("Manifest",),
    "format.sample": ("Sample",),
    "format.spec": ("DataSpec",),
    "photos.find": ("find_photos",),
    "photos.read": ("Photo", "PhotoSpec", "decoder_library", "read_photos"),
    "pixels": ("Pixels",),
    "read.collate": ("BatchSpec",),
    "read.loader": ("ArrayBatch", "BatchLoader"),
    "read.reader": ("ShardReader",),
    "sources.folder": ("count_images", "open_source"),
    "read.sampler": ("Indices", "evaluation_batches", "steps_per_epoch", "training_batches"),
    "stream.folder": ("ShardFolder",),
    "stream.partition": ("Part",),
    "stream.store": ("open_store",),
    "stream.stream": ("SampleStream",),
    "verify.verify": ("verify_shards",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"pipeline.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
