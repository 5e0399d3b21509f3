"""srp-data doctor: what this machine has, lacks, and should change."""

import dataclasses
import json
from pathlib import Path

import click

from pipeline.command.console import AS_JSON
from pipeline.command.origins import Command
from pipeline.common.errors import ConfigError


@click.command(cls=Command)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Folder whose disk is measured, such as that of the shards.  [default: this one]",
)
@click.option(
    "--disk-mib",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Size of the file that is written there, read and removed, MiB; 0 writes none.",
)
@AS_JSON
def doctor(folder: Path, disk_mib: int, as_json: bool) -> None:
    """Look at this machine, and say what to install or change.

    Prints versions, the decoders that work here, GPUs, what the CPU can do, memory, free space and
    speed of a disk, and limits. Then what to do, one line each. The exit status is 0, unless
    something that every command needs is broken.
    """
    from pipeline.bench.doctor import examine

    found = []
    for finding in examine(folder, disk_mib=disk_mib):
        found.append(finding)
        if not as_json:
            click.echo(f"{finding.name:<20} {finding.value}")
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        advised = [f"{each.name}: {each.advice}" for each in found if each.advice]
        click.echo("\n".join(["", *(advised or ["Nothing needs to be changed."])]))
    if broken := [finding for finding in found if finding.is_broken]:
        raise ConfigError(
            "what every command needs must work; got "
            f"{'; '.join(f'{each.name}: {each.value}' for each in broken)}. {broken[0].advice}"
        )
