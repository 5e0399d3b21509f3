"""srp-data: images in, shards out. Options become configs; nothing is decided here."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.bench.cli import bench
from pipeline.build.config import BuildConfig
from pipeline.cli.verify import counts_of, verify
from pipeline.common.atomic_io import require_file
from pipeline.common.console import (
    AS_JSON,
    BYTES,
    EXIT_STATUSES,
    Commands,
    Resumable,
    note,
    option,
    shown_progress,
)
from pipeline.common.wording import few, printable
from pipeline.datasets.config import ScatterConfig, SceneConfig
from pipeline.format.crops import CANDIDATE_SETS, CANDIDATES_TEXT
from pipeline.format.spec import CODECS, DECODERS, DEVICES, JPEG_SUBSAMPLINGS, LAYOUTS

if TYPE_CHECKING:
    from pipeline.format.manifest import Manifest

MAX_SKIPPED = 10  # that are named in text


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_STATUSES,
)
@click.version_option(package_name="srp")
def main() -> None:
    """Turn folders of images into WebDataset shards of crops and glimpses."""


main.add_command(bench)
main.add_command(verify)


@main.command("build-shards", cls=Resumable)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@option("--canvas-size", BuildConfig.canvas_size, "Side of the square canvas, px.")
@option("--crop-size", BuildConfig.crop_size, "Side of every crop, px.")
@option("--glimpse-size", BuildConfig.glimpse_size, "Side of a glimpse before padding, px.")
@option(
    "--candidates",
    BuildConfig.candidates,
    f"Crops of each image: {CANDIDATES_TEXT}.",
    click.Choice(CANDIDATE_SETS),
)
@option(
    "--layout",
    BuildConfig.layout,
    "Store every crop, or the canvas once and cut on reading.",
    click.Choice(LAYOUTS),
)
@option(
    "--codec",
    BuildConfig.codec,
    "How a canvas is written: raw is fastest, zstd, png and webp are exact, jpeg is lossy.",
    click.Choice(CODECS),
)
@option("--jpeg-quality", BuildConfig.jpeg_quality, "Of --codec jpeg, 1 to 100.")
@option(
    "--jpeg-subsampling",
    BuildConfig.jpeg_subsampling,
    "Of the colours of --codec jpeg; 4:4:4 keeps them all.",
    click.Choice(JPEG_SUBSAMPLINGS),
)
@option(
    "--decoder", BuildConfig.decoder, "Library that decodes the images.", click.Choice(DECODERS)
)
@option("--device", BuildConfig.device, "Where it decodes; gpu needs dali.", click.Choice(DEVICES))
@option(
    "--draft/--no-draft",
    BuildConfig.draft,
    "Let libjpeg shrink large photos while decoding them: faster, not bit-exact.",
)
@option("--exif/--no-exif", BuildConfig.exif, "Turn photos as their EXIF orientation says.")
@option("--max-pixels", BuildConfig.max_pixels, "Largest image that is not rejected, px.")
@option(
    "--shard-mib",
    BuildConfig.shard_mib,
    "Largest size of a shard, MiB; a guess where --codec compresses.",
)
@click.option(
    "-j",
    "--workers",
    default=BuildConfig.workers,
    show_default="CPUs this process may use",
    help="Processes, each writing whole shards and, with --device gpu, sharing the GPU.",
)
@click.option(
    "--image-timeout",
    "image_timeout_s",
    default=BuildConfig.image_timeout_s,
    show_default=True,
    help="Without another image done, after which a worker is ended and its shard tried again, s.",
)
@click.option("--limit", type=int, help="Images per split, drawn by the seed.  [default: all]")
@option("--seed", BuildConfig.seed, "Seed of the order of images.")
@option("--max-rejects", BuildConfig.max_rejects, "Unusable images that a build may leave out.")
@AS_JSON
def build_shards(source: Path, out: Path, as_json: bool, **options: object) -> None:
    """Cut images into crops and glimpses, and write shards.

    SOURCE is a folder with train/ and val/ class folders, or a .tgz of one; the shards go to the
    folder OUT. A build that was broken off goes on when the same command is run again.
    """
    from pipeline.build.build import build_shards

    config = BuildConfig(source=source, out=out, **options)  # type: ignore[arg-type]
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
        _print_counts(result.manifest)
        _print_skipped(result.skipped, rest="--json names all")


def _print_counts(manifest: "Manifest") -> None:
    for split, num_sources in manifest.num_sources.items():
        num_bytes = sum(shard.num_bytes for shard in manifest.of_split(split))
        click.echo(
            f"{split}: {num_sources} images in, {manifest.num_samples(split)} samples out, "
            f"{len(manifest.of_split(split))} shards, {num_bytes / 2**20:.0f} MiB"
        )
    for reject in manifest.rejects:
        click.echo(printable(f"rejected {reject.path}: {reject.reason}"))


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="PNG to write."
)
@option("--split", "train", "Split to draw from.", click.Choice(("train", "val")))
@option("--rows", 6, "Samples to draw.", click.IntRange(1, 100))
@option("--seed", 0, "Seed of the draw.", click.IntRange(0))
def show(shards: Path, output: Path, split: str, rows: int, seed: int) -> None:
    """Draw a contact sheet of a few samples.

    Each shows its class, its crops and, below them, its glimpses with their padding.
    """
    from pipeline.cli.contact_sheet import draw_sheet

    require_file(output, "-o/--output")
    draw_sheet(shards, output, split=split, rows=rows, seed=seed)
    click.echo(str(output))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@option("--train", SceneConfig.train, "Images of each class in train/.")
@option("--val", SceneConfig.val, "Images of each class in val/.")
@click.option(
    "--size",
    "size_px",
    default=SceneConfig.size_px,
    show_default=True,
    help="Side of the square images, px.",
)
@option("--seed", SceneConfig.seed, "Seed of everything that is drawn.")
def sample(out: Path, **options: int) -> None:
    """Draw the embedded data set.

    OUT becomes a folder in Imagenette's layout: ten classes of shapes, one salient object a scene
    at a random place and size, with clutter around it; the objects' boxes are in boxes.csv.
    """
    from pipeline.datasets.scenes import draw_dataset

    with shown_progress("images/s") as progress:
        num_images = draw_dataset(out, **options, progress=progress)
    click.echo(f"{num_images} images in {out}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--size",
    "size_px",
    default=ScatterConfig.size_px,
    show_default=True,
    help="Side of the square pictures, px.",
)
@option("--smallest", ScatterConfig.smallest, "Longer side of an image over --size, at least.")
@option("--largest", ScatterConfig.largest, "The same, at most.")
@option("--seed", ScatterConfig.seed, "Seed of places, scales and textures.")
@option("--max-pixels", ScatterConfig.max_pixels, "Largest image that is not refused, px.")
@click.option(
    "-j",
    "--workers",
    default=ScatterConfig.workers,
    show_default="CPUs this process may use",
    help="Threads.",
)
def scatter(**options: Any) -> None:
    """Put each image small and anywhere, amid clutter.

    SOURCE is as for build-shards. OUT becomes a folder in Imagenette's layout with the same splits
    and classes, where location matters: the clutter is made of patches of other images, and the
    images' places are in boxes.csv.
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
    """Fetch a data set, hash-checked.

    NAME is imagenette2, imagewoof2, or one of them with -160 or -320 for images of that size. An
    interrupted download goes on where it stopped. The archive's digest is checked.
    """
    from pipeline.datasets import download as imagenette

    with shown_progress(BYTES) as progress:
        path = imagenette.download(name, output, progress=progress)
    click.echo(str(path))


def _print_skipped(names: tuple[str, ...], *, rest: str) -> None:
    """Count what was not taken of a source, and name the first of it.

    Args:
        names: Of all.
        rest: How to learn those that are not named.
    """
    if names:
        click.echo(f"skipped: {len(names)} (not an image by suffix and place)")
    for name in names[:MAX_SKIPPED]:
        click.echo(printable(f"skipped {name}"))
    if len(names) > MAX_SKIPPED:
        click.echo(f"and {len(names) - MAX_SKIPPED} more; {rest}")


if __name__ == "__main__":
    sys.exit(main())
