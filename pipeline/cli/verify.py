"""srp-data verify: check every byte of a folder of shards, and repair damaged ones."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.build.config import BuildConfig, require_path
from pipeline.command.console import AS_JSON, note, shown_progress
from pipeline.command.origins import Command
from pipeline.common.errors import printable
from pipeline.remote.address import parse_address

if TYPE_CHECKING:
    from pipeline.format.manifest import Manifest


@click.command(cls=Command)
@click.argument("shards", shell_complete=click.Path(file_okay=False).shell_complete)
@click.option(
    "-j",
    "--workers",
    default=BuildConfig.workers,
    show_default="CPUs this process may use",
    type=click.IntRange(1),
    help="Threads; each checks whole shards.",
)
@click.option(
    "--all/--changed",
    "reads_all",
    default=False,
    show_default=True,
    help="Read every shard, or only those changed since they were last verified; at an address, "
    "only those whose SHA-256 the store does not give.",
)
@click.option(
    "--repair",
    type=click.Path(path_type=Path),
    metavar="SOURCE",
    help="First rebuild damaged shards from SOURCE, with the manifest's options.  "
    "[default: repair nothing]",
)
@AS_JSON
def verify(shards: str, workers: int, reads_all: bool, repair: Path | None, as_json: bool) -> None:
    """Check every byte, and decode every sample.

    SHARDS is a folder of shards, or its address: http, https, s3, gs or hf. Every byte must match
    the manifest. Shards unchanged since they were last verified, or of which a store gives length
    and SHA-256, are skipped unless --all is given.
    """
    from pipeline.verify.verify import verify_shards

    if repair is not None:
        _repair(shards, repair, workers)
    with shown_progress("samples/s") as progress:
        verdict = verify_shards(shards, workers=workers, reads_all=reads_all, progress=progress)
    manifest = verdict.manifest
    if verdict.unread:
        how = (
            "unchanged since they were last verified; --all reads them again"
            if isinstance(verdict.folder, Path)
            else "stored with the length and the SHA-256 of the manifest; --all reads them"
        )
        note(f"{len(verdict.unread)} of {len(manifest.shards)} shards are {how}")
    for name in verdict.unnamed:
        note(f"skipped {name}: not in the manifest")
    if as_json:
        found = {"folder": str(verdict.folder), "unread": verdict.unread, **counts_of(manifest)}
        click.echo(json.dumps(found, indent=1))
        return
    for split, num_sources in manifest.num_sources.items():
        num_samples = manifest.num_samples(split)
        click.echo(
            f"{printable(split)}: {num_samples} samples of {num_sources} images, "
            f"{num_sources - num_samples} rejected, in {len(manifest.of_split(split))} shards: ok"
        )
    total = sum(manifest.num_samples(split) for split in manifest.splits)
    click.echo(f"total: {total} samples in {verdict.folder}: ok")


def counts_of(manifest: "Manifest") -> dict[str, Any]:
    """Count what a folder holds, for --json."""
    return {
        "fingerprint": manifest.fingerprint,
        "splits": {
            split: {
                "sources": num_sources,
                "samples": manifest.num_samples(split),
                "shards": len(manifest.of_split(split)),
                "bytes": sum(shard.num_bytes for shard in manifest.of_split(split)),
            }
            for split, num_sources in manifest.num_sources.items()
        },
        "rejects": [asdict(reject) for reject in manifest.rejects],
    }


def print_counts(manifest: "Manifest") -> None:
    """Print what a folder that was built holds."""
    for split, num_sources in manifest.num_sources.items():
        num_bytes = sum(shard.num_bytes for shard in manifest.of_split(split))
        click.echo(
            f"{split}: {num_sources} images in, {manifest.num_samples(split)} samples out, "
            f"{len(manifest.of_split(split))} shards, {num_bytes / 2**20:.0f} MiB"
        )
    for reject in manifest.rejects:
        click.echo(printable(f"rejected {reject.path}: {reject.reason}"))


def _repair(shards: str, source: Path, workers: int) -> None:
    from pipeline.verify.repair import repair

    with shown_progress("images/s") as progress:
        folder = require_path(parse_address(shards), "--repair")
        result = repair(folder, source, workers=workers, progress=progress)
    for shard in result.manifest.shards:
        if shard.name not in result.reused:
            note(f"rebuilt {shard.name}")
