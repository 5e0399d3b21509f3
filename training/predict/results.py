"""Write predictions as a table, as CSV and as JSON Lines: a batch at a time, so that they stream.

Probabilities of classes and of crops are 0 to 1 in CSV and JSON, and % in the table.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.common.errors import escaped, printable
from training.predict.load import LoadedRun
from training.predict.predict import Prediction, Tally
from training.report.terminal import WIDE
from training.score.cost import count_macs

DIGITS = 6  # of a float32


class Words(NamedTuple):
    """What results are written with.

    `labels` are those of the classes, in the order of the logits; `topk` classes are written, or
    all if there are fewer.
    """

    run: LoadedRun
    labels: tuple[str, ...]
    topk: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """One photograph's prediction, as it is written.

    Attributes:
        filename: As it was named.
        labels: Of the likeliest classes, the best first.
        probs: Their probabilities, 0 to 1.
        crop: Name of the chosen crop.
        box: Its place in the upright photograph, px: x0, y0, x1, y1.
        scores: The proposer's probability of each crop, 0 to 1; empty without a proposer.
        picture: Where its picture lies; empty without one.
    """

    filename: str
    labels: tuple[str, ...]
    probs: tuple[float, ...]
    crop: str
    box: tuple[float, ...]
    scores: tuple[float, ...]
    picture: str = ""


def labels_of(run: LoadedRun, label_type: str) -> tuple[str, ...]:
    """Give the label of each class, in the order of the logits.

    Args:
        run: Knows the classes.
        label_type: In timm's words: `description` for people, `name` of the folder, or `index`.
    """
    by_type = {
        "description": run.class_names,
        "name": run.classes,
        "index": tuple(map(str, range(len(run.classes)))),
    }
    return by_type[label_type]


def result_of(prediction: Prediction, words: Words) -> Result:
    """Take what is written from a prediction."""
    photo, layout = prediction.photo, words.run.spec.crop_layout
    topk = min(words.topk, len(words.labels))
    probs, classes = prediction.logits_C.double().softmax(0).topk(topk)
    candidate = words.run.model.candidates[prediction.chosen]
    box = layout.source_box(candidate, width=photo.width, height=photo.height)
    scores_K = prediction.probabilities_K
    return Result(
        filename=str(photo.file),
        labels=tuple(words.labels[c] for c in classes.tolist()),
        probs=_rounded(probs.tolist()),
        crop=layout.names[candidate],
        box=tuple(round(edge, 1) for edge in box),
        scores=() if scores_K is None else _rounded(scores_K.tolist()),
    )


def _rounded(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(share, DIGITS) for share in shares)


def table_text(results: Sequence[Result], words: Words, *, with_head: bool) -> str:
    """Lay results out in columns of fixed width, whatever the results; names of files are last.

    Args:
        results: At least one.
        words: The longest label decides a column's width.
        with_head: Whether these results are the first.
    """
    table = Table(box=None, show_header=with_head, pad_edge=False, padding=(0, 2, 0, 0))
    names = words.run.model.names
    label_width = max(5, *(len(printable(label)) for label in words.labels))
    for _ in results[0].labels:
        table.add_column("class", width=label_width, no_wrap=True)
        table.add_column("%", width=5, justify="right")
    table.add_column("crop", width=max(4, *map(len, names)))
    for name in names if results[0].scores else ():
        parts = name.split("-")  # one below the other, since there may be ten such columns
        table.add_column("\n".join(parts), width=max(5, *map(len, parts)), justify="right")
    table.add_column("file", no_wrap=True)
    for result in results:
        pairs = zip(result.labels, result.probs, strict=True)
        classes = [cell for label, prob in pairs for cell in (printable(label), _percent(prob))]
        scores = map(_percent, result.scores)
        cells = (*classes, result.crop, *scores, escaped(result.filename))
        table.add_row(*[Text(cell) for cell in cells])
    console = Console(file=io.StringIO(), width=10 * WIDE, color_system=None, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def csv_text(results: Sequence[Result], words: Words, *, with_head: bool) -> str:
    """Write results as CSV, with timm's names of columns: filename, label, prob.

    Several classes have the columns label_0, label_1, prob_0, prob_1. Columns of crops are named
    after them: score_full. What is not printable in the name of a file is escaped.

    Args:
        results: At least one.
        words: Names the crops.
        with_head: Whether these results are the first.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if with_head:
        places = [f"_{i}" for i in range(len(results[0].labels))]
        places = places if len(places) > 1 else [""]
        classes = (f"{column}{place}" for column in ("label", "prob") for place in places)
        scores = zip(words.run.model.names, results[0].scores, strict=False)
        crops = ("crop", "x0", "y0", "x1", "y1", *(f"score_{name}" for name, _ in scores))
        writer.writerow(["filename", *classes, *crops])
    for result in results:
        cells = (*map(escaped, result.labels), *result.probs, result.crop, *result.box)
        writer.writerow([escaped(result.filename), *cells, *result.scores])
    return text.getvalue()


def json_text(results: Sequence[Result], words: Words, *, with_head: bool) -> str:
    """Write results as JSON Lines, one object for each photograph; arguments as for `csv_text`."""
    return "".join(f"{json.dumps(_fields(result, words))}\n" for result in results)


def _fields(result: Result, words: Words) -> dict[str, object]:
    pairs = zip(result.labels, result.probs, strict=True)
    scores = zip(words.run.model.names, result.scores, strict=False)
    fields: dict[str, object] = {
        "filename": result.filename,
        "top": [{"label": label, "prob": prob} for label, prob in pairs],
        "crop": result.crop,
        "box": result.box,
        "scores": dict(scores),
    }
    return fields | ({"picture": result.picture} if result.picture else {})


class TextOf(Protocol):
    """Writes a batch's results; `with_head` if they are the first."""

    def __call__(self, results: Sequence[Result], words: Words, *, with_head: bool) -> str:
        """Write them."""
        ...


FORMATS: dict[str, TextOf] = {"table": table_text, "csv": csv_text, "json": json_text}
"""How results are written, a batch at a time."""


def rate_text(tally: Tally, run: LoadedRun) -> str:
    """Say how fast it went, where the time went, and what the proposer costs."""
    proposer, classifier = count_macs(run.model)
    seconds = max(tally.seconds, 1e-9)
    parts = [f"{100 * tally.waited_s / seconds:.0f} % waiting for images"]
    macs = ""
    if proposer:
        parts.append(f"{100 * tally.proposer_s / seconds:.1f} % the proposer")
        macs = f"; the proposer has {100 * proposer / (proposer + classifier):.1f} % of the MACs"
    parts.append(f"{100 * tally.classifier_s / seconds:.0f} % the classifier")
    rate = tally.num_images / seconds
    speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
    images = "1 image" if tally.num_images == 1 else f"{tally.num_images} images"
    return f"{images} in {seconds:.1f} s, {speed} images/s; of the time {', '.join(parts)}{macs}"
