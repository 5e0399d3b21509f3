"""srp-data plan, build-shards --shards and merge: one build in parts, on any number of machines."""

import json
from dataclasses import asdict, fields
from typing import Any

import click

from pipeline.build.config import BuildConfig
from pipeline.cli.verify import counts_of, print_counts
from pipeline.command.console import AS_JSON, Resumable, note, shown_progress
from pipeline.command.options import options_of
from pipeline.command.settings import settings_of
from pipeline.common.errors import ConfigError, few, printable
from pipeline.format.spec import DataSpec
from pipeline.remote.address import parse_address

_OF_SPEC = {field.name for field in fields(DataSpec)}


@click.command(cls=Resumable)
@click.argument("source", shell_complete=click.Path(file_okay=False).shell_complete)
@click.argument("out", shell_complete=click.Path(file_okay=False).shell_complete)
@options_of(BuildConfig, *(name for name in settings_of(BuildConfig) if name in _OF_SPEC))
@AS_JSON
def plan(source: str, out: str, as_json: bool, **options: Any) -> None:
    """Plan a build that is made in parts.

    SOURCE, a folder with train/ and val/ class folders, is listed once, and OUT gets the plan:
    which image goes to which shard. Then build-shards --shards builds parts of it, on any machines
    that have both folders, and merge publishes them. Either may be at an address: s3, gs or hf.
    """
    from pipeline.parts.plan import plan_parts

    config = BuildConfig(
        source=parse_address(source, what="SOURCE"), out=parse_address(out, what="OUT"), **options
    )
    with shown_progress("images/s") as progress:
        planned = plan_parts(config, progress=progress)
    splits = [shard.split for shard, _ in planned.shards]
    counts = {split: splits.count(split) for split in planned.num_sources}
    if as_json:
        found = {
            "folder": str(out),
            "fingerprint": planned.fingerprint,
            "shards": len(splits),
            "splits": {
                split: {"sources": planned.num_sources[split], "shards": count}
                for split, count in counts.items()
            },
            "skipped": planned.skipped,
        }
        click.echo(json.dumps(found, indent=1))
        return
    for split, count in counts.items():
        click.echo(f"{split}: {planned.num_sources[split]} images, {count} shards")
    if planned.skipped:
        click.echo(printable(f"skipped: {len(planned.skipped)} files: {few(planned.skipped)}"))
    click.echo(
        f"{len(splits)} shards are planned, 0 to {len(splits) - 1}. Build them in any number of "
        f"parts, the first of ten with --shards 1/10, then: srp-data merge {out}"
    )


def print_part(config: BuildConfig, shards: str, *, dry_run: bool, as_json: bool) -> None:
    """Build the shards that --shards names, and say what is left to do.

    Raises:
        ConfigError: If --dry-run was given too.
    """
    from pipeline.parts.build_part import build_part

    if dry_run:
        raise ConfigError(
            f"--dry-run looks at a whole build; got --shards {shards} too. Drop one of them."
        )
    with shown_progress("images/s") as progress:
        built = build_part(config, shards, progress=progress)
    if built.retried:
        note(f"retried after a worker died or hung: {few(built.retried)}")
    if as_json:
        click.echo(json.dumps({"folder": str(config.out), **asdict(built)}, indent=1))
        return
    for reject in built.rejects:
        click.echo(printable(f"rejected {reject.path}: {reject.reason}"))
    rest = built.num_shards - built.num_recorded
    then = f"{rest} of other parts are not." if rest else f"Publish: srp-data merge {config.out}"
    click.echo(
        f"{len(built.numbers)} shards are finished, {len(built.reused)} of them before; "
        f"{built.num_recorded} of the plan's {built.num_shards} are. {then}"
    )


@click.command(cls=Resumable)
@click.argument("out", shell_complete=click.Path(file_okay=False).shell_complete)
@click.option(
    "-j",
    "--workers",
    default=BuildConfig.workers,
    show_default="CPUs this process may use",
    type=click.IntRange(1),
    help="Threads; each hashes whole shards of a folder.",
)
@options_of(BuildConfig, "max_rejects")
@AS_JSON
def merge(out: str, workers: int, max_rejects: int, as_json: bool) -> None:
    """Publish a build that was made in parts.

    OUT holds a plan and its shards. The bytes of every shard are compared with its record, or at an
    address what the store says of them; what is missing is named, with the command that builds it,
    and else the manifest is written.
    """
    from pipeline.parts.merge import merge_parts

    with shown_progress("shards/s") as progress:
        place = parse_address(out, what="OUT")
        merged = merge_parts(place, max_rejects=max_rejects, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"folder": str(out), **counts_of(merged)}, indent=1))
    else:
        print_counts(merged)
