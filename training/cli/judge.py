"""srp-train evaluate and audit: what a run is worth. Options become arguments; no more."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from pipeline.command.console import AS_JSON
from pipeline.command.origins import Command
from pipeline.common.atomic_io import require_folder
from training.cli.options import MACHINE, PATH, RUN, RUN_SHARDS, rank_progress
from training.config import NAMES


@click.command(cls=Command)
@RUN
@RUN_SHARDS
@click.option("--candidates", help=f"Crops to score. {NAMES}  [default: those of the run]")
@click.option(
    "--checkpoint",
    type=click.Choice(("last", "best")),
    default="last",
    show_default=True,
    help="best was picked by its accuracy on the split that is scored here.",
)
@click.option(
    "--price",
    type=float,
    help="Classify the whole canvas where the proposer's doubt, 1 - max p, exceeds this times the "
    "extra GMACs; 0 to inf.  [default: never]",
)
@AS_JSON
@MACHINE
def evaluate(
    run: Path, shards: str | None, price: float | None, as_json: bool, device: str, **options: Any
) -> None:
    """Score RUN on the validation split.

    RUN is a folder that training wrote. Prints top-1 of the chosen crop, of each crop always, of
    a random one, of the mean of all and of any crop right, in hindsight; how often each crop is
    chosen; MACs; and top-1 by class. With --price, also the top-1 and MACs if the classifier may
    take the whole canvas in place of the chosen crop.
    """
    from training.audit.priced import evaluate_at_price
    from training.data.processes import started
    from training.report.terminal import evaluation_text, price_text
    from training.run.load import evaluate_run
    from training.saved.folder import RunPaths

    paths = RunPaths(folder=run)
    with started(device) as process, rank_progress(process.is_main) as progress:
        point = None
        asked: dict[str, Any] = {"shards_path": shards, "process": process, **options}
        if price is None:
            record, evaluation = evaluate_run(paths, progress=progress, **asked)
        else:
            record, evaluation, point = evaluate_at_price(
                paths, price=price, progress=progress, **asked
            )
    if process.is_main:
        names = record.data.class_names
        fields = dataclasses.asdict(evaluation)
        texts = [evaluation_text(evaluation, names)]
        if point is not None:
            fields["priced"] = point.to_json()
            texts.append(price_text(point))
        click.echo(json.dumps(fields, indent=1) if as_json else "\n".join(texts))


@click.command(cls=Command)
@RUN
@RUN_SHARDS
@click.option(
    "--boxes", type=PATH, help="CSV of the objects' boxes: path,x0,y0,x1,y1.  [default: none]"
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Folder for audit.html, audit.json and audit.png.  [default: RUN]",
)
@AS_JSON
@MACHINE
def audit(
    run: Path, shards: str | None, output: Path | None, as_json: bool, device: str, **options: Any
) -> None:
    """Say whether choosing is worth it in RUN.

    RUN is a run that chooses. The chosen crop is compared with the whole image, the centre, the
    best fixed crop, a random one and the mean of all, of the same classifier; with the runs that
    do not choose in the same folder; and with an oracle. Runs of other seeds in that folder are
    averaged. Where no run of the whole image is among them, the command that trains one at equal
    cost is printed. Prints the figures, and writes audit.json, audit.html, one file that loads
    nothing, and its picture, audit.png.
    """
    from training.audit.run import audit_run, rival_command
    from training.data.processes import require_one, started
    from training.report.audit_page import write_audit
    from training.report.terminal import audit_text
    from training.run.load import shards_of
    from training.saved.folder import RunPaths
    from training.saved.record import load_record

    record = load_record(RunPaths(folder=run).record)
    opened = shards_of(record, shards)
    with started(device) as process, rank_progress(process.is_main) as progress:
        require_one(process, "an audit")
        # What cannot work is refused before a folder is made.
        dataclasses.replace(record.config, workers=options["workers"])
        require_folder(output or run, "-o/--output")
        audited = audit_run(run, shards=opened, process=process, progress=progress, **options)
        written = write_audit(audited, output or run)
    found = audited.audit
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else audit_text(found))
    for path in written:
        click.echo(f"wrote {path}", err=True)
    if command := rival_command(audited):
        click.echo(
            "The strongest rival is missing: a classifier of its own for the whole image, at equal "
            f"cost. Train it, then audit again: {command}",
            err=True,
        )
