"""srp-data verify: every byte of some shards, and their repair."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.build.config import BuildConfig
from pipeline.common.console import AS_JSON, note, shown_progress
from pipeline.common.errors import printable

if TYPE_CHECKING:
    from pipeline.format.manifest import Manifest


@click.command()
@click.argument("shards")
@click.option(
    "-j",
    "--workers",
    default=BuildConfig.workers,
    show_default="CPUs this process may use",
    type=click.IntRange(1),
    help="Threads, each checking whole shards.",
)
@click.option(
    "--all/--changed",
    "reads_all",
    default=False,
    show_default=True,
    help="Read every shard, or those that were written to since they were found whole.",
)
@click.option(
    "--repair",
    type=click.Path(path_type=Path),
    metavar="SOURCE",
    help="Build damaged shards again from SOURCE first, with the manifest's options.  "
    "[default: build nothing]",
)
@AS_JSON
def verify(shards: str, workers: int, reads_all: bool, repair: Path | None, as_json: bool) -> None:
    """Check every byte, and decode every sample.

    SHARDS is a folder of shards, or its address: http, https, s3 or gs. Its manifest says what
    every byte must be. Shards that were found whole before and were not written to since are not
    read again, unless --all is given.
    """
    from pipeline.verify.verify import verify_shards

    if repair is not None:
        _repair(shards, repair, workers)
    with shown_progress("samples/s") as progress:
        verdict = verify_shards(shards, workers=workers, reads_all=reads_all, progress=progress)
    manifest = verdict.manifest
    if verdict.unread:
        note(
            f"{len(verdict.unread)} of {len(manifest.shards)} shards were found whole before and "
            "not written to since; --all reads them again"
        )
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
    """Lay out for programs what a folder holds."""
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


def _repair(shards: str, source: Path, workers: int) -> None:
    from pipeline.verify.repair import repair

    with shown_progress("images/s") as progress:
        result = repair(Path(shards), source, workers=workers, progress=progress)
    rebuilt = [s.name for s in result.manifest.shards if s.name not in result.reused]
    for name in rebuilt:
        note(f"built {name} again")
