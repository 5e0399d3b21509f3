"""srp-data: images in, shards out. Options become configs; nothing is decided here."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.bench.cli import bench
from pipeline.build.config import BuildConfig
from pipeline.cli.doctor import doctor
from pipeline.cli.parts import merge, plan, print_part
from pipeline.cli.verify import counts_of, print_counts, verify
from pipeline.command.console import (
    AS_JSON,
    BYTES,
    Commands,
    Resumable,
    note,
    shown_progress,
)
from pipeline.command.options import options_of
from pipeline.common.atomic_io import require_file
from pipeline.common.errors import few, printable
from pipeline.datasets.config import ScatterConfig, SceneConfig
from pipeline.remote.address import parse_address

if TYPE_CHECKING:
    from pipeline.build.dry_run import BuildPlan

MAX_SKIPPED = 10  # names printed as text


@click.group(
    cls=Commands,
    extra="srp[train]",
    variables="SRP_DATA",
)
@click.version_option(package_name="srp")
def main() -> None:
    """Turn folders of images into WebDataset shards of crops and glimpses."""


main.add_command(bench)
main.add_command(verify)
main.add_command(plan)
main.add_command(merge)
main.add_command(doctor)


@main.command("build-shards", cls=Resumable)
@click.argument("source", shell_complete=click.Path().shell_complete)
@click.argument("out", shell_complete=click.Path(file_okay=False).shell_complete)
@click.option(
    "--dry-run",
    is_flag=True,
    show_default=True,
    help="Print images, shards, bytes and estimated time, after decoding a few images; write "
    "nothing.",
)
@click.option(
    "--shards",
    metavar="0-99,120|I/N",
    help="Build only these shards of the plan in OUT, by number, or the I-th of N parts of it; "
    "merge then publishes them.  [default: all, without a plan]",
)
@options_of(BuildConfig)
@AS_JSON
def build_shards(
    source: str, out: str, dry_run: bool, shards: str | None, as_json: bool, **options: Any
) -> None:
    """Cut images into crops and glimpses, and write shards.

    SOURCE is a folder with train/ and val/ class folders, or a .tgz of one; the shards go to the
    folder OUT. Either may be at an address: s3, gs or hf, and a .tgz at http or https. Run the same
    command again to continue an interrupted build.
    """
    from pipeline.build.build import build_shards
    from pipeline.build.dry_run import plan_build

    config = BuildConfig(
        source=parse_address(source, what="SOURCE"), out=parse_address(out, what="OUT"), **options
    )
    if shards is not None:
        print_part(config, shards, dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        with shown_progress("images/s") as progress:
            forecast = plan_build(config, progress=progress)
        _print_plan(forecast, out, config.workers, as_json=as_json)
        return
    with shown_progress("images/s") as progress:
        result = build_shards(config, progress=progress)
    if result.retried:
        note(f"retried after a worker died or hung: {few(result.retried)}")
    if result.reused:
        note(f"reused {len(result.reused)} finished shards: {few(result.reused)}")
    if as_json:
        counts = {**counts_of(result.manifest), "skipped": result.skipped}
        click.echo(json.dumps({"folder": str(out), **counts}, indent=1))
    else:
        print_counts(result.manifest)
        _print_skipped(result.skipped, rest="--json names all")


def _print_plan(plan: "BuildPlan", out: str, workers: int, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"folder": str(out), **dataclasses.asdict(plan)}, indent=1))
        return
    for split, num_images in plan.images.items():
        click.echo(
            f"{split}: {num_images} images, {plan.shards.get(split, 0)} shards, about "
            f"{plan.num_bytes[split] / 2**20:,.0f} MiB"
        )
    if plan.num_skipped:
        click.echo(f"skipped: {plan.num_skipped} (not an image file in train/CLASS/ or val/CLASS/)")
    click.echo(f"{plan.free_bytes / 2**20:,.0f} MiB are free there")
    if plan.seconds is not None:
        click.echo(
            f"decoding takes about {plan.seconds:,.0f} s with --workers {workers}, at "
            f"{plan.images_per_s:,.0f} images/s of one; writing comes on top"
        )
    there = " It holds shards already." if plan.exists else ""
    click.echo(f"Nothing was written to {out}.{there}")


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="PNG to write."
)
@click.option(
    "--split",
    default="train",
    show_default=True,
    help="Split to draw from.",
    type=click.Choice(("train", "val")),
)
@click.option(
    "--rows", default=6, show_default=True, help="Number of samples.", type=click.IntRange(1, 100)
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the choice of samples.",
    type=click.IntRange(0),
)
def show(shards: Path, output: Path, split: str, rows: int, seed: int) -> None:
    """Draw a contact sheet of a few samples.

    Each sample shows its class, its crops and, below them, its padded glimpses.
    """
    from pipeline.cli.contact_sheet import draw_sheet

    require_file(output, "-o/--output")
    draw_sheet(shards, output, split=split, rows=rows, seed=seed)
    click.echo(str(output))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@options_of(SceneConfig)
def sample(**options: Any) -> None:
    """Draw the embedded data set.

    OUT becomes a folder in Imagenette's layout: ten classes of shapes, one salient object per
    scene at a random place and size on a cluttered background. boxes.csv holds the objects' boxes.
    """
    from pipeline.datasets.scenes import draw_dataset

    config = SceneConfig(**options)
    with shown_progress("images/s") as progress:
        num_images = draw_dataset(config, progress=progress)
    click.echo(f"{num_images} images in {config.out}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@options_of(ScatterConfig)
def scatter(**options: Any) -> None:
    """Place each image small and at random in clutter.

    SOURCE is as for build-shards. OUT becomes a folder in Imagenette's layout with the same splits
    and classes, where location matters: the clutter is made of patches of other images. boxes.csv
    holds the images' boxes.
    """
    from pipeline.datasets.scatter import scatter as scatter_images
    from pipeline.decode.rules import own_process

    config = ScatterConfig(**options)
    with shown_progress("images/s") as progress, own_process():
        scattered = scatter_images(config, progress=progress)
    click.echo(f"{scattered.num_images} images in {config.out}")
    _print_skipped(scattered.skipped, rest="build-shards --json names all")


@main.command(cls=Resumable)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    default=Path("data"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder to save NAME.tgz to.",
)
def download(name: str, output: Path) -> None:
    """Download a data set and check its SHA-256.

    NAME is imagenette2 or imagewoof2, or one of them with -160 or -320 for smaller images. Run the
    same command again to continue an interrupted download.
    """
    from pipeline.datasets.download import download as download_archive

    with shown_progress(BYTES) as progress:
        click.echo(str(download_archive(name, output, progress=progress)))


def _print_skipped(names: tuple[str, ...], *, rest: str) -> None:
    """Count the skipped files of a source, and name the first ones.

    Args:
        names: All skipped paths.
        rest: Where the other names are found.
    """
    if names:
        click.echo(f"skipped: {len(names)} (not an image file in train/CLASS/ or val/CLASS/)")
    for name in names[:MAX_SKIPPED]:
        click.echo(printable(f"skipped {name}"))
    if len(names) > MAX_SKIPPED:
        click.echo(f"and {len(names) - MAX_SKIPPED} more; {rest}")


if __name__ == "__main__":
    sys.exit(main())
