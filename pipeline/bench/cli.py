"""srp-data bench: what this machine can do. Options become configs; nothing is decided here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.bench.config import BenchConfig, LoadBenchConfig
from pipeline.bench.loaders.registry import NAMES
from pipeline.common.console import console, option, shown_progress

if TYPE_CHECKING:
    from rich.table import Table


@click.group()
def bench() -> None:
    """Measure this machine: rates, ratios, and what is possible."""


@bench.command("build")
@click.argument("source", type=click.Path(path_type=Path))
@option("--images", BenchConfig.images, "Images to measure on, drawn by the seed.")
@option("--rounds", BenchConfig.rounds, "Turns of each contender; one more warms it up.")
@click.option(
    "-j",
    "--workers",
    default=BenchConfig.workers,
    show_default="CPUs this process may use",
    help="Processes of the builds that are measured beside those with one.",
)
@option("--canvas-size", BenchConfig.canvas_size, "Side of the square canvas, px.")
@option("--crop-size", BenchConfig.crop_size, "Side of every crop, px.")
@option("--glimpse-size", BenchConfig.glimpse_size, "Side of a glimpse, px.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    help="Python of another environment with srp, such as make simd's, to take turns with."
    "  [default: none]",
)
@click.option(
    "--json",
    type=click.Path(path_type=Path),
    help="File for the figures; - prints them in place of the table.  [default: none]",
)
@option("--seed", BenchConfig.seed, "Seed of the draw.")
def bench_build(source: Path, **options: object) -> None:
    """Compare decoders, and whole builds, with the limit.

    SOURCE is a folder with train/ and val/ class folders, or a .tgz of one. Every contender has
    its turn in every round, on one thread, but for DALI, which has all CPUs; the table holds
    medians.
    """
    from pipeline.bench import results as benches
    from pipeline.bench.decoders import bench_build as measure
    from pipeline.decode.rules import own_process

    config = BenchConfig(source=source, **options)  # type: ignore[arg-type]
    with shown_progress("images/s") as progress, own_process():
        rows, setting = measure(config, progress=progress)
    _show(
        benches.to_table(rows, unit="images/s"),
        benches.to_json(rows, setting=setting),
        config.json,
    )


@bench.command("load")
@click.argument("shards", type=click.Path(path_type=Path))
@option("--images", LoadBenchConfig.images, "Images of the train split that all loaders get.")
@option("--rounds", LoadBenchConfig.rounds, "Turns of each contender; one more warms it up.")
@click.option(
    "-j",
    "--workers",
    default=LoadBenchConfig.workers,
    show_default="CPUs this process may use",
    help="Threads or processes that load, measured beside one.",
)
@option("--batch", LoadBenchConfig.batch, "Images in a batch.")
@option("--seconds", LoadBenchConfig.seconds, "Least time that a turn measures, s.")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="What the shards were built from, for loaders that read the original images."
    "  [default: none, and those are left out]",
)
@click.option(
    "--peer",
    multiple=True,
    metavar="NAME",
    help=f"Loader to measure, of {', '.join(NAMES)}; may be repeated.  [default: all]",
)
@click.option(
    "--python",
    multiple=True,
    metavar="NAME=PYTHON",
    help="Python of the environment that a loader lives in, such as make bench-envs makes; may be "
    "repeated.  [default: this one]",
)
@click.option(
    "--json",
    type=click.Path(path_type=Path),
    help="File for the figures; - prints them in place of the table.  [default: none]",
)
@click.option("--svg", type=click.Path(path_type=Path), help="File for a chart.  [default: none]")
def bench_load(shards: Path, **options: object) -> None:
    """Compare loaders, each from its own layout of the same images.

    SHARDS is a folder of shards in the canvas layout with the candidates five. Every contender
    has its turn in every round, in a process of its own; the table holds medians. What all write
    stays among temporary files till the end, some seven times the size of the images' canvases.
    """
    from pipeline.bench.loaders import rows as load_rows
    from pipeline.bench.loaders.registry import REFERENCE
    from pipeline.bench.loaders.run import bench_load as measure

    config = LoadBenchConfig(shards=shards, **options)  # type: ignore[arg-type]
    with shown_progress("images/s") as progress:
        rows, setting = measure(config, progress=progress)
    if config.svg:
        from pipeline.bench.loaders.chart import draw_chart

        config.svg.write_text(draw_chart(rows), encoding="utf-8")
    reference = ": ".join(REFERENCE)
    _show(
        load_rows.to_table(rows, reference=reference),
        load_rows.to_json(rows, reference=reference, setting=setting),
        config.json,
        width=150,
    )


@bench.command("codecs")
@click.argument("shards", type=click.Path(path_type=Path))
@option("--images", 300, "Canvases to measure on.", click.IntRange(1))
def bench_codecs(shards: Path, images: int) -> None:
    """Compare codecs on the canvases of some shards.

    SHARDS is a folder of shards in the layout canvas with --codec raw. Every codec has its turn on
    every canvas, on one thread; bytes are means, times are medians.
    """
    from pipeline.bench.codecs import measure

    with shown_progress("images/s") as progress:
        rows = measure(shards, images=images, progress=progress)
    click.echo(
        f"{'codec':<14}{'kB':>8}{'encode ms':>12}{'decode ms':>12}{'off: mean':>12}{'max':>6}"
    )
    for row in rows:
        click.echo(
            f"{row.name:<14}{row.kilobytes:8.1f}{row.encode_ms:12.2f}{row.decode_ms:12.2f}"
            f"{row.mean_off:12.2f}{row.max_off:6d}"
        )


@bench.command("scale")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(200),
    multiple=True,
    default=(1_000, 10_000, 100_000, 1_000_000),
    show_default=True,
    help="Samples of a split; may be repeated.",
)
@click.option(
    "-j",
    "--workers",
    default=LoadBenchConfig.workers,
    show_default="CPUs this process may use",
    type=click.IntRange(1),
    help="Threads that read.",
)
@option("--rounds", 3, "Fresh processes for each size.", click.IntRange(1))
def bench_scale(shards: Path, sizes: tuple[int, ...], workers: int, rounds: int) -> None:
    """Show how reading costs grow with the samples.

    SHARDS is a folder of shards in the layout canvas; larger splits are its shards many times over.
    Start and memory are those of a fresh process, whose batches check every sample.
    """
    from pipeline.bench.scale import bench_scale as measure

    with shown_progress("sizes/s") as progress:
        costs = measure(shards, sizes=sizes, workers=workers, rounds=rounds, progress=progress)
    click.echo(f"{'samples':>10}{'shards':>9}{'start, s':>11}{'memory, MiB':>14}{'samples/s':>12}")
    for cost in costs:
        click.echo(
            f"{cost.num_samples:10,}{cost.num_shards:9,}{cost.start_s:11.2f}"
            f"{cost.memory_mib:14.0f}{cost.rate:12,.0f}"
        )


def _show(
    table: "Table", figures: Mapping[str, Any], path: Path | None, *, width: int = 100
) -> None:
    """Print the table, or the figures for programs; write these to a file as well."""
    from rich.console import Console

    text = json.dumps(figures, indent=1)
    if path == Path("-"):
        click.echo(text)
        return
    Console(width=max(width, console().width), markup=False, highlight=False).print(table)
    if path:
        path.write_text(f"{text}\n", encoding="utf-8")
