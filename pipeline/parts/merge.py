"""Merge the parts of a build: check what lies there against the plan, and publish it."""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pipeline.build.config import BuildConfig, require_writable
from pipeline.build.output import open_alone
from pipeline.build.publish import describe
from pipeline.command.settings import flag_of, settings_of
from pipeline.common.errors import VerificationError
from pipeline.common.progress import SILENT, Progress
from pipeline.format.manifest import Manifest
from pipeline.format.spec import DataSpec
from pipeline.parts.numbers import spell_numbers
from pipeline.parts.plan_file import SavedPlan, ShardLine, load_plan
from pipeline.remote.address import RemoteFolder
from pipeline.write.resume import Finished


def merge_parts(
    out: Path | RemoteFolder, *, max_rejects: int, workers: int, progress: Progress = SILENT
) -> Manifest:
    """Publish a build whose parts are finished, with one manifest.

    Args:
        out: The folder of the parts, or its address.
        max_rejects: Unusable images that all parts together may leave out.
        workers: Threads; each hashes whole shards of a folder. A store is asked for digests.
        progress: Reports shards checked.

    Raises:
        ConfigError: If OUT has no plan, is at a web server, or a folder that is being written.
        StoreError: If the address cannot be read or written.
        RejectsError: If more images are unusable than allowed; nothing is published.
        VerificationError: If the plan is damaged, or a shard is missing or not as its record says.
    """
    require_writable(out)
    saved = load_plan(out)
    plan = saved.with_images()
    with open_alone(out) as output:
        names = [line.name for line in saved.lines]
        intact = output.intact(plan, names, workers=workers, progress=progress)
        missing = [
            number
            for number, line in enumerate(saved.lines)
            if not _is_finished(line, intact.get(line.name))
        ]
        if missing:
            raise VerificationError(
                f"every shard of the plan must be there, with the bytes of its record; got "
                f"{len(missing)} of {len(names)} missing or damaged in {out}. Build them with: "
                f"{_command(saved, missing)}"
            )
        built = describe(plan, intact)
        output.publish(plan, built, intact, at_most=max_rejects)
    return built


def _is_finished(line: ShardLine, found: Finished | None) -> bool:
    """Whether a record is there, and of as many images as were planned."""
    return found is not None and len(found.shard.samples) + len(found.rejects) == line.num_images


def _command(saved: SavedPlan, missing: Sequence[int]) -> str:
    """Spell the command that builds shards, with the options that were planned."""
    words = ["srp-data", "build-shards", saved.source, str(saved.out)]
    recorded = {field.name for field in fields(DataSpec)}
    for name, (_, default) in settings_of(BuildConfig).items():
        value = getattr(saved.spec, name) if name in recorded else None
        if value is None or value == default:
            continue
        flag = flag_of(BuildConfig, name)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return shlex.join([*words, "--shards", spell_numbers(missing)])
