"""srp-data bench: what this machine can do. Options become configs; nothing is decided here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.bench.config import (
    BenchConfig,
    CodecBenchConfig,
    LoadBenchConfig,
    PlanBenchConfig,
    ScaleBenchConfig,
)
from pipeline.command.console import shown_progress
from pipeline.command.options import options_of
from pipeline.command.origins import Group

if TYPE_CHECKING:
    from pipeline.command.results import Row

SHARDS = click.argument("shards", type=click.Path(path_type=Path))


@click.group(cls=Group)
def bench() -> None:
    """Measure this machine: rates, ratios, and what is possible."""


@bench.command("build")
@click.argument("source", type=click.Path(path_type=Path))
@options_of(BenchConfig)
def bench_build(source: Path, **options: object) -> None:
    """Compare decoders, and whole builds, with the limit.

    SOURCE is a folder with train/ and val/ class folders, or a .tgz of one. Every contender has
    its turn in every round, on one thread, except DALI, which has all CPUs; the table holds
    medians.
    """
    from pipeline.bench.decoders import bench_build as measure
    from pipeline.decode.rules import own_process

    config = BenchConfig(source=source, **options)  # type: ignore[arg-type]
    with shown_progress("images/s") as progress, own_process():
        rows, setting = measure(config, progress=progress)
    _show(rows, unit="images/s", setting=setting, path=config.json)


@bench.command("load")
@SHARDS
@options_of(LoadBenchConfig)
def bench_load(shards: Path, **options: object) -> None:
    """Compare loaders, each from its own layout of the same images.

    SHARDS is a folder of shards in the canvas layout with the candidates five. Every contender
    has its turn in every round, in a process of its own; the table holds medians. The layouts stay
    among temporary files until the end and take about seven times the size of the canvases.
    """
    from pipeline.bench.loaders.run import bench_load as measure

    config = LoadBenchConfig(shards=shards, **options)  # type: ignore[arg-type]
    with shown_progress("images/s") as progress:
        rows, setting = measure(config, progress=progress)
    if config.svg:
        from pipeline.bench.loaders.chart import draw_chart

        config.svg.write_text(draw_chart(rows), encoding="utf-8")
    _show(rows, setting=setting, path=config.json)


@bench.command("codecs")
@SHARDS
@options_of(CodecBenchConfig)
def bench_codecs(shards: Path, **options: object) -> None:
    """Compare codecs on the canvases of some shards.

    SHARDS is a folder of shards in the layout canvas with --codec raw. Every codec has its turn on
    every canvas, on one thread; bytes are means, times are medians.
    """
    from pipeline.bench.codecs import bench_codecs as measure

    config = CodecBenchConfig(shards=shards, **options)  # type: ignore[arg-type]
    with shown_progress("images/s") as progress:
        _show(measure(config, progress=progress))


@bench.command("scale")
@SHARDS
@options_of(ScaleBenchConfig)
def bench_scale(shards: Path, **options: object) -> None:
    """Show how reading costs grow with the samples.

    SHARDS is a folder of shards in the layout canvas; larger splits are its shards many times over.
    Start and memory are those of a fresh process, whose batches and streams check every sample.
    Above two million samples, where an index is a file for each shard, only streams are measured.
    """
    from pipeline.bench.scale import bench_scale as measure

    config = ScaleBenchConfig(shards=shards, **options)  # type: ignore[arg-type]
    with shown_progress("sizes/s") as progress:
        _show(measure(config, progress=progress))


@bench.command("plan")
@click.argument("shards", type=click.Path(path_type=Path), required=False)
@options_of(PlanBenchConfig)
def bench_plan(shards: Path | None, **options: object) -> None:
    """Compute what data sets of some sizes take, and what breaks first.

    Nothing is measured: rates measured once, and prices that are examples, become bytes, shards,
    hours, Gbit/s and costs. SHARDS, a folder of shards, gives the sizes of crops and the bytes of a
    sample; without it they are those of the benches.
    """
    from pipeline.bench.plan import bench_plan as compute
    from pipeline.command.results import show_rows

    config = PlanBenchConfig(shards=shards, **options)  # type: ignore[arg-type]
    sections, setting = compute(config)
    if config.json != Path("-"):
        for section in sections:
            click.echo(f"{section.title}\n")
            show_rows(section.rows)
            click.echo("")
    if config.json:
        rows = [row for section in sections for row in section.rows]
        _write(rows, setting=setting, path=config.json)


def _write(rows: Sequence["Row"], *, setting: Mapping[str, Any], path: Path) -> None:
    """Write the figures for programs, or print them where `path` is `-`."""
    from pipeline.command.results import to_json

    text = json.dumps(to_json(rows, setting=setting), indent=1)
    if path == Path("-"):
        click.echo(text)
    else:
        path.write_text(f"{text}\n", encoding="utf-8")


def _show(
    rows: Sequence["Row"],
    *,
    unit: str = "samples/s",
    setting: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> None:
    """Print the table, or the figures for programs where `path` is `-`."""
    from pipeline.command.results import show_rows

    as_json = path == Path("-")
    show_rows(rows, unit=unit, setting=setting, as_json=as_json, path=None if as_json else path)
