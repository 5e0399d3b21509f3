"""Build again what is broken in a folder of shards, with the options that its manifest names."""

from pathlib import Path

from pipeline.build.build import BuildResult, build_shards
from pipeline.build.config import BuildConfig
from pipeline.common.progress import SILENT, Progress
from pipeline.format.spec import DataSpec
from pipeline.read.folder import ShardFolder


def repair(shards: Path, source: Path, *, workers: int, progress: Progress = SILENT) -> BuildResult:
    """Build the damaged shards of a folder again; whole ones are left as they are.

    Args:
        shards: The folder, or one that holds it; its manifest must be whole.
        source: What the shards were built from.
        workers: Processes.
        progress: Reports as `build` does.

    Raises:
        ConfigError: If the source or the libraries are not those of the shards.
        VerificationError: If the source's images have other bytes than they had; the folder is
            left as it is.
    """
    opened = ShardFolder.open(shards)
    before = opened.manifest
    config = config_of(
        before.spec,
        source=source,
        out=opened.path,
        workers=workers,
        max_rejects=len(before.rejects),
    )
    return build_shards(config, expected=before, progress=progress)


def config_of(
    spec: DataSpec, *, source: Path, out: Path, workers: int, max_rejects: int
) -> BuildConfig:
    """Give the options of a build that its spec is of.

    Args:
        spec: Of the manifest.
        source: To build from.
        out: Folder of the shards.
        workers: Processes.
        max_rejects: Unusable images that are allowed.
    """
    jpeg = (
        {"jpeg_quality": spec.jpeg_quality, "jpeg_subsampling": spec.jpeg_subsampling}
        if spec.codec == "jpeg"
        else {}
    )
    return BuildConfig(
        source=source, out=out, workers=workers, max_rejects=max_rejects,
        canvas_size=spec.canvas_size, crop_size=spec.crop_size, glimpse_size=spec.glimpse_size,
        candidates=spec.candidates, layout=spec.layout, codec=spec.codec,
        decoder=spec.decoder, device=spec.device, draft=spec.draft, exif=spec.exif,
        max_pixels=spec.max_pixels,
        shard_mib=spec.shard_mib, limit=spec.limit, seed=spec.seed, **jpeg,  # type: ignore[arg-type]
    )  # fmt: skip
