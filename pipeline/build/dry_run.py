"""What a build would read and take: `srp-data build-shards --dry-run`. Nothing is written."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.build.config import BuildConfig
from pipeline.build.output import has_manifest
from pipeline.build.prepare import plan_source, spec_here, threads_of
from pipeline.common.errors import ImageError
from pipeline.common.progress import SILENT, Progress
from pipeline.decode import open_decoder
from pipeline.decode.rules import own_process
from pipeline.format.spec import DataSpec
from pipeline.remote.address import RemoteFolder
from pipeline.sources.folder import is_archive
from pipeline.sources.image import SourceImage
from pipeline.stream.cache import default_folder
from pipeline.write.planning import sample_bytes

DECODED = 48  # images of the first shards, which are drawn by the seed
MEASURING = "decoding a few images"


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """A build that is planned.

    Attributes:
        images: To read, by split.
        shards: To write, by split.
        num_bytes: Of the shards of each split, about; at most, where nothing is compressed.
        num_skipped: Files that are not images in train/CLASS/ or val/CLASS/.
        free_bytes: On the disk of OUT; of the scratch folder, if OUT is at an address.
        images_per_s: Of one worker that decodes; None where the images are in an archive.
        seconds: Of all workers together, if each has a CPU, without writing; None likewise.
        exists: Whether OUT holds shards already.
    """

    images: Mapping[str, int]
    shards: Mapping[str, int]
    num_bytes: Mapping[str, int]
    num_skipped: int
    free_bytes: int
    images_per_s: float | None
    seconds: float | None
    exists: bool


def plan_build(config: BuildConfig, *, progress: Progress = SILENT) -> BuildPlan:
    """List a source, plan its shards, and decode a few of its images.

    Args:
        config: The build.
        progress: Reports bytes of an archive, and images decoded.

    Raises:
        ConfigError: If the decoder is not there.
        SourceError: If the source cannot be used.
    """
    spec = spec_here(config)
    plan = plan_source(config, spec, scratch=Path(os.devnull), progress=progress)
    rate = None
    if not is_archive(config.source):  # an archive's images are not kept
        first = [image for _, members in plan.shards for image in members][:DECODED]
        rate = _decoding_rate(spec, first, num_threads=threads_of(config), progress=progress)
    return BuildPlan(
        images=plan.num_sources,
        shards=dict(Counter(shard.split for shard, _ in plan.shards)),
        num_bytes={split: num * sample_bytes(spec) for split, num in plan.num_sources.items()},
        num_skipped=len(plan.skipped),
        free_bytes=shutil.disk_usage(_parent_of(_written_here(config))).free,
        images_per_s=rate,
        seconds=None if not rate else sum(plan.num_sources.values()) / (rate * config.workers),
        exists=has_manifest(config.out),
    )


def _decoding_rate(
    spec: DataSpec, images: list[SourceImage], *, num_threads: int, progress: Progress
) -> float | None:
    """Decode some images after a first one; returns images/s, or None for too few."""
    decoder = open_decoder(spec, num_threads)

    def read(image: SourceImage) -> bytes | ImageError:
        try:
            return image.read()
        except OSError as error:
            return ImageError(str(error))

    with own_process():
        files = ((image.path, read(image)) for image in images)
        begun = time.perf_counter()
        for done, _ in enumerate(decoder.decode(files), start=1):
            progress.update(MEASURING, done, len(images))
            if done == 1:  # what is compiled or opened once does not count
                begun = time.perf_counter()
    return (len(images) - 1) / (time.perf_counter() - begun) if len(images) > 1 else None


def _written_here(config: BuildConfig) -> Path:
    """Give the folder of this machine that shards are written to."""
    if isinstance(config.out, RemoteFolder):
        return config.scratch or default_folder()
    return config.out


def _parent_of(folder: Path) -> Path:
    """Find the folder, or the nearest above it, that is there."""
    absolute = folder.absolute()
    return next(each for each in chain([absolute], absolute.parents) if each.exists())
