"""Rebuild the damaged shards of a folder, with the options that its manifest records."""

from dataclasses import fields
from pathlib import Path

from pipeline.build.build import BuildResult, build_shards
from pipeline.build.config import BuildConfig
from pipeline.common.progress import SILENT, Progress
from pipeline.format.spec import DataSpec
from pipeline.stream.folder import ShardFolder


def repair(shards: Path, source: Path, *, workers: int, progress: Progress = SILENT) -> BuildResult:
    """Rebuild the damaged shards of a folder; intact ones stay as they are.

    Args:
        shards: The folder, or one that holds it; its manifest must be intact.
        source: What the shards were built from.
        workers: Processes.
        progress: Reports as `build_shards` does.

    Raises:
        ConfigError: If the source or the libraries differ from those of the shards.
        VerificationError: If the bytes of the source's images differ; the folder stays as it is.
    """
    folder = ShardFolder.open(shards)
    config = config_of(
        folder.manifest.spec,
        source=source,
        out=Path(folder.place),
        workers=workers,
        max_rejects=len(folder.manifest.rejects),
    )
    return build_shards(config, expected=folder.manifest, progress=progress)


def config_of(
    spec: DataSpec, *, source: Path, out: Path, workers: int, max_rejects: int
) -> BuildConfig:
    """Give the config of the build that a spec records; what is None has its default."""
    recorded = {field.name: getattr(spec, field.name, None) for field in fields(BuildConfig)}
    options = {name: value for name, value in recorded.items() if value is not None}
    return BuildConfig(source=source, out=out, workers=workers, max_rejects=max_rejects, **options)
