"""srp-train bench: how fast this machine trains, and what holds it up."""

from pathlib import Path
from typing import Any

import click

from pipeline.command.console import AS_JSON, note
from pipeline.command.options import options_of
from pipeline.command.origins import Group
from pipeline.common.atomic_io import require_file
from training.bench.config import LatencyBenchConfig, StepBenchConfig
from training.cli.options import PATH, RUN, SHARDS, rank_progress


@click.group(cls=Group)
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
    from pipeline.command.results import show_rows
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


@bench.command("latency")
@RUN
@click.option("-o", "--output", type=PATH, help="File for the figures, JSON.  [default: none]")
@AS_JSON
@options_of(LatencyBenchConfig)
def bench_latency(run: Path, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how long one image takes in RUN's exported graph, on the CPU.

    RUN is a folder that training wrote, or one of its checkpoints. Beside the chosen crop: the
    whole image at the crop's size, so at equal MACs, and all crops, averaged. Each is an ONNX graph
    in onnxruntime that resizes a decoded image of 500x375 px; all have a turn in every round.
    """
    import torch

    from pipeline.command.results import show_rows
    from training.export.latency import bench_latency as measure
    from training.export.onnx_file import require_onnx
    from training.export.run import load_exported_run
    from training.study.sizes import describe_machine

    require_onnx()
    config = LatencyBenchConfig(**options)
    if output is not None:
        require_file(output, "-o/--output")
    loaded = load_exported_run(run)
    note(f"machine: {describe_machine(torch.device('cpu'))}")
    with rank_progress(True) as progress:
        rows, setting = measure(config, run=loaded, progress=progress)
    show_rows(rows, unit="images/s", setting=setting, as_json=as_json, path=output)
