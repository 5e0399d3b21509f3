"""srp-train predict: a finished run on any photograph. Options become arguments; no more."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.command.console import AS_JSON, note
from pipeline.command.origins import Command
from pipeline.common.atomic_io import require_folder
from pipeline.common.errors import ConfigError, RejectsError, SourceError
from training.cli.options import MACHINE, PATH, rank_progress

if TYPE_CHECKING:
    from training.predict.predict import Prediction, Tally
    from training.predict.results import Result, TextOf, Words

LABEL_TYPES = ("description", "name", "index")


@click.command(cls=Command)
@click.argument("run", type=PATH)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--topk",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Likeliest classes to show.",
)
@click.option(
    "--label-type",
    type=click.Choice(LABEL_TYPES),
    default="description",
    show_default=True,
    help="What names a class: its name for people, its folder's, or its place among the logits.",
)
@click.option(
    "--results-format",
    type=click.Choice(("table", "csv")),
    default="table",
    show_default=True,
    help="How results are printed, unless --json.",
)
@click.option(
    "--save-pictures",
    type=PATH,
    metavar="DIR",
    help="Folder for a picture of each image: the map over it, the boxes of the crops, the chosen "
    "one lit.  [default: none]",
)
@AS_JSON
@MACHINE
def predict(
    run: Path, images: tuple[str, ...], topk: int, label_type: str, results_format: str,
    save_pictures: Path | None, as_json: bool, workers: int, device: str,
) -> None:  # fmt: skip
    """Classify photographs with RUN.

    RUN is a folder that training wrote, or one of its checkpoints; it needs no shards. IMAGE is a
    file, a folder, a pattern in quotes such as 'photos/**/*.jpg', or - for a list of files on
    standard input. Prints each image's class and its probability, the crop that was chosen, and the
    proposer's score of each crop; only the chosen crop is classified. --json prints one object a
    line. An image that cannot be used is named and skipped, and the exit status is then 4.
    """
    if as_json and results_format != "table":
        raise ConfigError(
            f"results have one format; got --json and --results-format {results_format}. Drop one."
        )
    if save_pictures is not None:
        require_folder(save_pictures, "--save-pictures")

    from pipeline import find_photos
    from training.data.processes import require_one, started
    from training.predict.load import load_run
    from training.predict.predict import Tally
    from training.predict.predict import predict as predict_photos
    from training.predict.results import FORMATS, Words, labels_of, rate_text

    # A bar on a terminal takes what is printed and shows it above itself, on stderr.
    stdout = None if sys.stdout.isatty() else sys.stdout
    found = find_photos(images, sys.stdin.buffer)
    tally = Tally()
    text_of: TextOf = FORMATS["json" if as_json else results_format]
    with started(device) as process, rank_progress(process.is_main) as progress:
        require_one(process, "a prediction")
        loaded = load_run(run, process.device)
        words = Words(loaded, labels_of(loaded, label_type), topk)
        for line in loaded.notes:
            progress.event("note", f"note: {line}")
        for batch in predict_photos(
            loaded, found.files, num_files=found.num_files, workers=workers, tally=tally,
            with_pictures=save_pictures is not None, progress=progress,
        ):  # fmt: skip
            first = tally.num_images - len(batch)
            results = _results(batch, words, folder=save_pictures, first=first)
            click.echo(text_of(results, words, with_head=first == 0), file=stdout, nl=False)
    if tally.num_images:
        note(rate_text(tally, loaded))
    _check_all_used(tally)


def _check_all_used(tally: "Tally") -> None:
    num_files = tally.num_images + tally.num_rejected
    if not num_files:
        raise SourceError(
            "a list of images must name some; got none on standard input. Write one path a line."
        )
    if tally.num_rejected:
        raise RejectsError(
            f"every image must be usable; got {tally.num_rejected} of {num_files} that are not, "
            "each named above with its reason. Repair them, or leave them out."
        )


def _results(
    batch: "list[Prediction]", words: "Words", *, folder: Path | None, first: int
) -> "list[Result]":
    """Give the results of a batch, once its pictures are saved.

    Args:
        batch: Predictions.
        words: What results are named by.
        folder: Of the pictures; None saves none.
        first: Number of the first photograph.
    """
    from training.predict.results import result_of

    results = [result_of(prediction, words) for prediction in batch]
    if folder is None:
        return results
    from training.predict.pictures import save_picture

    saved = (
        save_picture(prediction, result, words.run, folder=folder, number=number)
        for number, (prediction, result) in enumerate(zip(batch, results, strict=True), first)
    )
    return [replace(result, picture=str(path)) for result, path in zip(results, saved, strict=True)]
