"""Merge the parts of a build: check what lies there against the plan, and publish it."""

import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path

from pipeline.build.config import BuildConfig
from pipeline.build.publish import check_rejects, describe, publish
from pipeline.command.settings import flag_of, settings_of
from pipeline.common.errors import VerificationError
from pipeline.common.progress import SILENT, Progress
from pipeline.format.manifest import Manifest
from pipeline.format.spec import DataSpec
from pipeline.parts.numbers import spell_numbers
from pipeline.parts.plan_file import SavedPlan, ShardLine, load_plan
from pipeline.write.resume import Finished, drop_records, load_record, open_state


def merge_parts(
    out: Path, *, max_rejects: int, workers: int, progress: Progress = SILENT
) -> Manifest:
    """Publish a build whose parts are finished, with one manifest.

    Args:
        out: The folder of the parts.
        max_rejects: Unusable images that all parts together may leave out.
        workers: Threads; each hashes whole shards.
        progress: Reports shards checked.

    Raises:
        ConfigError: If the folder has no plan, or is being written.
        RejectsError: If more images are unusable than allowed; nothing is published.
        VerificationError: If the plan is damaged, or a shard is missing or not as its record says.
    """
    saved = load_plan(out)
    with open_state(out) as state:
        records = state / saved.fingerprint
        kept = _check_shards(saved, out, records, workers=workers, progress=progress)
        missing = [number for number, found in enumerate(kept) if found is None]
        if missing:
            raise VerificationError(
                f"every shard of the plan must be there, with the bytes of its record; got "
                f"{len(missing)} of {len(kept)} missing or damaged in {out}. Build them with: "
                f"{_command(saved, out, missing)}"
            )
        finished = {found.shard.name: found for found in kept if found}
        built = describe(saved.with_images(), finished)
        check_rejects(out, built.rejects, at_most=max_rejects)
        publish(out, records, built, finished)
        drop_records(records)
    return built


def _check_shards(
    saved: SavedPlan, out: Path, records: Path, *, workers: int, progress: Progress
) -> list[Finished | None]:
    """Give the record of each shard of a plan, or None for one that must be built."""
    check = partial(_check_shard, saved.spec, out, records)
    kept = []
    pool = ThreadPoolExecutor(workers)
    try:
        for found in pool.map(check, saved.lines):
            kept.append(found)
            progress.update("checking finished shards", len(kept), len(saved.lines))
    finally:
        pool.shutdown(cancel_futures=True)
    return kept


def _check_shard(spec: DataSpec, out: Path, records: Path, line: ShardLine) -> Finished | None:
    found = load_record(records, line.name, spec)
    if found is None or not found.is_intact(out / line.name):
        return None
    num_images = len(found.shard.samples) + len(found.rejects)
    return found if num_images == line.num_images else None


def _command(saved: SavedPlan, out: Path, missing: Sequence[int]) -> str:
    """Spell the command that builds shards, with the options that were planned."""
    words = ["srp-data", "build-shards", saved.source, str(out)]
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
