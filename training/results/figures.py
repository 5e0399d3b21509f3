"""Draw the pictures of the READMEs again: `make figures`, with DATA=FILE the front page's too.

The charts come from the records beside this file, so equal records give equal pictures. What the
front page shows is trained first, which takes more than an hour of two plain cores.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from pipeline.bench.loaders.chart import INK, draw_chart
from pipeline.command.results import Row
from training.report.charts.accuracy import Mark, accuracy_by_macs
from training.report.charts.svg import COLOURS
from training.study.finished import Spread

RESULTS = Path(__file__).resolve().parent
REPO = RESULTS.parents[1]
SCATTER = RESULTS / "scatter"
LOADERS = REPO / "pipeline/bench/results"
CHOSEN = "tuned-map-g112"
HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def spread(arm: str, read: Callable[[dict[str, object]], float]) -> Spread:
    """Give the mean and sd over an arm's seeds of a figure, %.

    Args:
        arm: Its name without the seed.
        read: Takes the figure from a record's evaluation.
    """
    records = [json.loads(path.read_text("utf-8")) for path in SCATTER.glob(f"{arm}-s[0-9].json")]
    figures = [read(record["evaluation"]) for record in records]
    return Spread(statistics.mean(figures), statistics.stdev(figures))


def accuracy() -> str:
    """Draw accuracy against compute on scattered Imagenette, crops of 112 px, five seeds."""
    seen = json.loads((SCATTER / f"{CHOSEN}-s0.json").read_text("utf-8"))["evaluation"]
    one, choosing = seen["classifier_macs"], seen["proposer_macs"] + seen["classifier_macs"]
    centre = seen["crops"].index("centre")
    ours = COLOURS["distilled"]
    marks = [
        Mark("the chosen crop", choosing, spread(CHOSEN, lambda e: e["top1"]), ours),
        Mark("any crop right", choosing, spread(CHOSEN, lambda e: e["top1_oracle"]), ours,
             hollow=True),
        Mark("the whole image, specialist", one, spread("whole", lambda e: e["top1"]),
             COLOURS["whole"]),
        Mark("the centre crop", one, spread(CHOSEN, lambda e: e["top1_crops"][centre]),
             COLOURS["centre"]),
        Mark("a random crop", one, spread(CHOSEN, lambda e: e["top1_random"]), COLOURS["random"]),
        Mark("the mean of all ten", len(seen["crops"]) * one,
             spread(CHOSEN, lambda e: e["top1_mean"]), COLOURS["mean"]),
    ]  # fmt: skip
    # An image in a page does not know whether the page is light or dark.
    return HEAD + accuracy_by_macs(marks).replace("currentColor", INK)


def loaders() -> str:
    """Draw the samples per second of every loader."""
    rows = json.loads((LOADERS / "load.json").read_text("utf-8"))["rows"]
    return draw_chart(msgspec.convert(rows, tuple[Row, ...]))


def overview(png: Path) -> None:
    """Draw the crops and glimpses of three scenes."""
    with TemporaryDirectory() as folder:
        scenes, shards = f"{folder}/scenes", f"{folder}/shards"
        run("srp-data", "sample", scenes, "--train", "2", "--val", "1")
        run("srp-data", "build-shards", scenes, shards, "--canvas-size", "168",
            "--crop-size", "112", "--glimpse-size", "32")  # fmt: skip
        run("srp-data", "show", shards, "-o", str(png), "--rows", "3")


def choices(data: str, png: Path, work: Path) -> None:
    """Train what the front page shows, and draw it; goes on where an earlier call stopped.

    Args:
        data: Imagenette, a folder or a .tgz.
        png: File to write.
        work: Folder for images, shards and runs.
    """
    small, scattered, runs = work / "shards/small", work / "shards/scatter128", work / "runs"
    if not (work / "scatter128/train").is_dir():
        run("srp-data", "scatter", data, f"{work}/scatter128", "--size", "128")
    crops = ("--crop-size", "64", "--glimpse-size", "64")
    run("srp-data", "build-shards", data, f"{small}", "--canvas-size", "80", *crops)
    run("srp-data", "build-shards", f"{work}/scatter128", f"{scattered}", "--canvas-size", "128",
        *crops, "--candidates", "full+grid3")  # fmt: skip
    begun = ("--initial-checkpoint", f"{runs}/begun", "--lr", "0.03")
    both = ("--epochs", "8", "--seed", "0", "--output", f"{runs}", "--resume")
    run("srp-train", "from", f"{small}", "--policy", "random", "--experiment", "begun", *both)
    run("srp-train", "from", f"{scattered}", "--experiment", "chooser-s0", *both, *begun,
        "--fit-epochs", "60")  # fmt: skip
    run("srp-train", "from", f"{scattered}", "--policy", "whole", "--candidates", "full",
        "--experiment", "whole-s0", *both, *begun)  # fmt: skip
    run("srp-train", "audit", f"{runs}/chooser-s0", "--boxes", f"{work}/scatter128/boxes.csv")
    png.write_bytes((runs / "chooser-s0/audit.png").read_bytes())


def run(*command: str) -> None:
    """Run one of the two programs; an error of its own ends this one too."""
    program = Path(sys.executable).parent / command[0]
    subprocess.run([program, *command[1:]], check=True, stdout=sys.stderr)  # noqa: S603 - our own


def main(out: Path, data: str, work: Path) -> None:
    """Draw them all below a folder that has the layout of this repository."""
    for path, draw in (
        (SCATTER / "accuracy.svg", accuracy),
        (LOADERS / "load.svg", loaders),
    ):
        (out / path.relative_to(REPO)).write_text(draw(), encoding="utf-8")
    overview(out / (RESULTS / "overview.png").relative_to(REPO))
    if data:
        choices(data, out / (RESULTS / "choices.png").relative_to(REPO), work)


if __name__ == "__main__":
    main(REPO, sys.argv[1], Path(sys.argv[2]))
