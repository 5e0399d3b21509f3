"""srp-train headroom: what choosing could gain, before a long training."""

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from pipeline.command.console import AS_JSON, Resumable
from pipeline.command.options import options_of
from training.audit.config import HeadroomConfig
from training.cli.options import MACHINE, PATH, SHARDS, rank_progress


@click.command(cls=Resumable)
@SHARDS
@click.option(
    "--output",
    type=PATH,
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs; what is trained here goes to its subfolder headroom.",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of finished runs to compare with.  [default: that of --output]",
)
@AS_JSON
@options_of(HeadroomConfig)
@MACHINE
def headroom(
    shards: str, output: Path, runs: Path | None, as_json: bool, workers: int, device: str,
    **options: Any,
) -> None:  # fmt: skip
    """Estimate what choosing could gain on SHARDS.

    Two small classifiers are trained on half of the images each, and a proposer is fitted to
    their losses: minutes on a CPU. The room is how much more accurate an oracle is than the best
    fixed crop; it knows the label, so a proposer gains less. Finished runs on SHARDS that choose
    are shown as well. The same command resumes an estimate.
    """
    from pipeline import ShardFolder
    from training.audit.headroom import estimate_headroom, plan_parts, shown_by, work_folder
    from training.data.processes import started
    from training.report.terminal import headroom_text
    from training.study.finished import group_arms, read_runs_on

    wanted = HeadroomConfig(**options)
    opened = ShardFolder.open(shards).limited(wanted.limit)
    parts = plan_parts(wanted, opened, workers=workers, device=device)
    finished = read_runs_on(output if runs is None else runs, opened.manifest.fingerprint)
    with started(device) as process, rank_progress(process.is_main) as progress:
        found = estimate_headroom(
            parts,
            shards=opened,
            folder=work_folder(output, wanted, opened),
            process=process,
            progress=progress,
        )
    shown = shown_by(group_arms(finished))
    fields = found.to_json() | {"shown": msgspec.to_builtins(shown)}
    click.echo(json.dumps(fields, indent=1) if as_json else headroom_text(found, shown))
