"""Plan a build: list the source once, and write down which image goes to which shard."""

from pathlib import Path

from pipeline.build.config import BuildConfig
from pipeline.build.output import has_manifest, open_alone
from pipeline.build.prepare import ShardPlan, plan_source, spec_here
from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.progress import SILENT, Progress
from pipeline.format.manifest import FILE_NAME
from pipeline.parts.plan_file import save_plan
from pipeline.remote.address import RemoteFolder
from pipeline.sources.folder import is_archive, require_source


def plan_parts(config: BuildConfig, *, progress: Progress = SILENT) -> ShardPlan:
    """Write the plan of a build that is made in parts.

    Planning the same build again keeps its finished shards.

    Args:
        config: The build; its workers and rejects do not matter here.
        progress: Reports nothing yet: a folder is listed, no archive is read.

    Raises:
        ConfigError: If OUT holds another build, or a finished one.
        SourceError: If the source is no folder of images.
        StoreError: If an address cannot be read or written.
    """
    require_folder(config.source)
    spec = spec_here(config)
    with open_alone(config.out) as output:
        if has_manifest(config.out):
            raise ConfigError(
                f"OUT must not be finished to be planned; got {config.out}, which has a "
                f"{FILE_NAME}. Choose another folder."
            )
        plan = plan_source(config, spec, scratch=output.images, progress=progress)
        output.refuse_other_build(plan)
        output.begin(plan, {})
        save_plan(config.out, plan, source=config.source)
    return plan


def require_folder(source: Path | RemoteFolder) -> None:
    """Check that a source is a folder, which every part can open its images in.

    Raises:
        SourceError: If it is missing, or an archive.
    """
    require_source(source)
    if is_archive(source):
        raise SourceError(
            f"a build in parts needs a folder of images; got {source}. Unpack it, or build it "
            "whole, without plan and --shards."
        )
