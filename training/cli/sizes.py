"""srp-train sizes: how large a study can be on this machine."""

import dataclasses
import json
from pathlib import Path

import click

from pipeline.command.console import AS_JSON, note
from pipeline.command.origins import Command
from pipeline.common.atomic_io import named_output, require_file
from pipeline.common.errors import ConfigError
from training.cli.options import DEVICE, PATH, PROFILE


@click.command(cls=Command)
@click.argument("source", type=PATH)
@PROFILE
@click.option(
    "-o", "--output", type=PATH,
    help="File that keeps the sizes; where it exists, they are read from it.  [default: none]",
)  # fmt: skip
@AS_JSON
@DEVICE
def sizes(source: Path, profile: str, output: Path | None, as_json: bool, device: str) -> None:
    """Choose a study's crops and epochs for this machine.

    SOURCE is a folder of images or a .tgz of one, as for srp-data build-shards. Times ten steps of
    the profile's classifier, and takes the largest crops and the most epochs that fit the profile's
    time. Prints the side of the crops, px, and the epochs.
    """
    from training.data.processes import require_one, started
    from training.study.profiles import PROFILES
    from training.study.sizes import load_sizes, measure_sizes

    planned = PROFILES[profile]
    if not planned.crops:
        known = ", ".join(name for name, each in PROFILES.items() if each.crops)
        raise ConfigError(
            f"--profile must be one that fits itself to the machine; got {profile}. Choose from "
            f"{known}."
        )
    if output is not None:
        with named_output(output, "-o/--output", kind="file"):
            output.parent.mkdir(parents=True, exist_ok=True)
        require_file(output, "-o/--output")
    with started(device) as process:
        require_one(process, "a choice of sizes")
        chosen = None if output is None else load_sizes(output)
        if chosen is None:
            chosen = measure_sizes(planned, source, process=process, tell=note)
            if output is not None:
                chosen.save(output)
        else:
            note(f"sizes as chosen before, in {output}")
    num_runs = len(planned.arms) * len(planned.seeds) * planned.num_data_sets
    limit = "" if planned.minutes is None else f" (at most {planned.minutes:.0f})"
    note(
        f"--profile {profile}: crops of {chosen.crop_px} px, {chosen.epochs} epochs, {num_runs} "
        f"runs: about {chosen.minutes:.0f} minutes of training{limit}"
    )
    if planned.minutes is not None and chosen.minutes > planned.minutes:
        note("warning: that is the least for so many images on this machine")
    shown = json.dumps(dataclasses.asdict(chosen), indent=1)
    click.echo(shown if as_json else f"{chosen.crop_px} {chosen.epochs}")
