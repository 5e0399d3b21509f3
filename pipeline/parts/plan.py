"""Plan a build: list the source once, and write down which image goes to which shard."""

from pathlib import Path

from pipeline.build.config import BuildConfig, require_path
from pipeline.build.prepare import ShardPlan, plan_source, spec_here
from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.progress import SILENT, Progress
from pipeline.format import manifest
from pipeline.parts.plan_file import save_plan
from pipeline.remote.address import RemoteFolder
from pipeline.sources.folder import require_source
from pipeline.write.resume import SCRATCH_NAME, open_records, open_state, refuse_other_build


def plan_parts(config: BuildConfig, *, progress: Progress = SILENT) -> ShardPlan:
    """Write the plan of a build that is made in parts.

    Planning the same build again keeps its finished shards.

    Args:
        config: The build; its workers and rejects do not matter here.
        progress: Reports nothing yet: a folder is listed, no archive is read.

    Raises:
        ConfigError: If the output folder holds another build, or a finished one.
        SourceError: If the source is no folder of images.
    """
    source = require_folder(config.source)
    out = require_path(config.out, "a build in parts")
    spec = spec_here(config)
    with open_state(out) as state:
        if (out / manifest.FILE_NAME).exists():
            raise ConfigError(
                f"OUT must not be finished to be planned; got {out}, which has a "
                f"{manifest.FILE_NAME}. Choose another folder."
            )
        plan = plan_source(config, spec, scratch=state / SCRATCH_NAME, progress=progress)
        refuse_other_build(out, spec, plan.fingerprint)
        open_records(state / plan.fingerprint, spec)
        save_plan(state, plan, source=source)
    return plan


def require_folder(source: Path | RemoteFolder) -> Path:
    """Check that a source is a folder, which every part can open its images in.

    Raises:
        ConfigError: If it is at an address.
        SourceError: If it is missing, or an archive.
    """
    path = require_path(source, "a build in parts")
    require_source(path)
    if not path.is_dir():
        raise SourceError(
            f"a build in parts needs a folder of images; got {path}. Unpack it, or build it "
            "whole, without plan and --shards."
        )
    return path
