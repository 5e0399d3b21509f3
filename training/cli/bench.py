"""srp-train bench: how fast this machine trains, and what holds it up."""

from pathlib import Path
from typing import Any

import click

from pipeline.common.atomic_io import require_file
from pipeline.common.console import AS_JSON, note
from pipeline.common.options import options_of
from training.bench.config import StepBenchConfig
from training.cli.options import PATH, SHARDS, rank_progress


@click.group()
def bench() -> None:
    """Measure this machine: rates, ratios, and what is possible."""


@bench.command("step")
@SHARDS
@click.option("-o", "--output", type=PATH, help="File for the figures, JSON.  [default: none]")
@AS_JSON
@options_of(StepBenchConfig)
def bench_step(shards: str, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure the training step on SHARDS, and what it could be.

    Every row is in images/s: the step of a run with its loader; the same step on batches that are
    there, which leaves out what it waits for (the stall); plain trainings with torch's DataLoader
    on the same images; the classifier's forward and backward alone; and what a matrix product in
    the same type would allow. All have a turn in every round; the table holds medians.
    """
    from pipeline import ShardFolder
    from pipeline.common.results import show_rows
    from training.bench.step import bench_step as measure
    from training.data.processes import require_one, started
    from training.study.sizes import describe_machine

    config = StepBenchConfig(**options)
    if output is not None:
        require_file(output, "-o/--output")
    opened = ShardFolder.open(shards)
    with started(config.device) as process, rank_progress(process.is_main) as progress:
        require_one(process, "a bench")
        note(f"machine: {describe_machine(process.device)}")
        rows, setting = measure(config, shards=opened, process=process, progress=progress)
    show_rows(rows, unit="images/s", setting=setting, as_json=as_json, path=output)
