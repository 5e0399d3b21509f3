"""Results in three formats, a batch at a time: columns that do not depend on the results."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.config import TrainConfig
from training.predict.load import LoadedRun, load_run
from training.predict.predict import Tally, predict
from training.predict.results import (
    FORMATS,
    Result,
    Words,
    labels_of,
    rate_text,
    result_of,
)
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

ODD = "odd\n\x1b[31m\udcff  name.jpg"


@pytest.fixture(scope="module")
def run(finished: tuple[RunPaths, RunRecord]) -> LoadedRun:
    return load_run(finished[0].folder, torch.device("cpu"))


def words_of(run: LoadedRun, topk: int = 1, label_type: str = "description") -> Words:
    return Words(run, labels_of(run, label_type), topk)


def results(run: LoadedRun, scenes: Path, words: Words) -> list[Result]:
    files = sorted(scenes.glob("val/*/*.JPEG"))[:5]
    (batch,) = predict(run, files, num_files=5, workers=1, tally=Tally())
    return [result_of(prediction, words) for prediction in batch]


def test_a_result_names_the_likeliest_classes_the_crop_and_its_place(
    run: LoadedRun, scenes: Path
) -> None:
    for result in results(run, scenes, words_of(run, topk=3)):
        assert list(result.probs) == sorted(result.probs, reverse=True)
        assert len(result.labels) == len(set(result.labels)) == 3
        assert set(result.labels) <= set(run.class_names)
        best = max(range(len(result.scores)), key=result.scores.__getitem__)
        assert result.crop == run.model.names[best]
        assert sum(result.scores) == pytest.approx(1, abs=1e-5)
        side = 56  # px, of a scene
        layout = run.spec.crop_layout
        x0, y0, x1, y1 = layout.normalised()[layout.names.index(result.crop)]
        assert result.box == pytest.approx([side * edge for edge in (x0, y0, x1, y1)], abs=0.05)


def test_more_classes_than_there_are_gives_all(run: LoadedRun, scenes: Path) -> None:
    result = results(run, scenes, words_of(run, topk=999))[0]
    assert sorted(result.labels) == sorted(run.class_names)
    assert sum(result.probs) == pytest.approx(1, abs=1e-5)


def test_labels_are_of_the_type_that_was_asked_for(run: LoadedRun) -> None:
    assert labels_of(run, "description") == run.class_names
    assert labels_of(run, "name") == run.classes
    assert labels_of(run, "index")[:3] == ("0", "1", "2")


@pytest.mark.parametrize("topk", [1, 2])
def test_csv_reads_back_and_a_batch_after_the_first_has_no_head(
    topk: int, run: LoadedRun, scenes: Path
) -> None:
    words = words_of(run, topk)
    found = results(run, scenes, words)
    first = FORMATS["csv"](found[:2], words, with_head=True)
    text = first + FORMATS["csv"](found[2:], words, with_head=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["filename"] for row in rows] == [result.filename for result in found]
    places = [""] if topk == 1 else ["_0", "_1"]
    for row, result in zip(rows, found, strict=True):
        assert tuple(row[f"label{place}"] for place in places) == result.labels
        assert tuple(float(row[f"prob{place}"]) for place in places) == result.probs
        assert tuple(float(row[f"score_{name}"]) for name in run.model.names) == result.scores
        assert tuple(float(row[edge]) for edge in ("x0", "y0", "x1", "y1")) == result.box
        assert row["crop"] == result.crop


def test_json_has_an_object_a_line_and_keeps_any_name(run: LoadedRun, scenes: Path) -> None:
    words = words_of(run, 2)
    found = [replace(result, filename=ODD) for result in results(run, scenes, words)]
    lines = FORMATS["json"](found, words, with_head=True).splitlines()
    assert len(lines) == len(found)
    for line, result in zip(lines, found, strict=True):
        fields = json.loads(line)
        assert fields["filename"] == ODD
        assert [each["prob"] for each in fields["top"]] == list(result.probs)
        assert tuple(fields["scores"]) == run.model.names
        assert "picture" not in fields


@pytest.mark.parametrize("name", ["table", "csv"])
def test_a_hostile_name_stays_on_its_line_and_moves_no_terminal(
    name: str, run: LoadedRun, scenes: Path
) -> None:
    words = words_of(run)
    odd = replace(results(run, scenes, words)[0], filename=ODD)
    (line,) = FORMATS[name]([odd], words, with_head=False).splitlines()
    assert r"odd\n\x1b[31m\udcff  name.jpg" in line


def test_the_table_has_the_same_columns_in_every_batch(run: LoadedRun, scenes: Path) -> None:
    words = words_of(run, 2)
    found = results(run, scenes, words)
    whole = FORMATS["table"](found, words, with_head=True)
    first = FORMATS["table"](found[:1], words, with_head=True)
    rest = [FORMATS["table"]([result], words, with_head=False) for result in found[1:]]
    assert whole == "".join([first, *rest])
    head = " ".join(whole.splitlines()[:2])
    assert all(part in head for name in run.model.names for part in name.split("-"))


def test_without_a_proposer_there_are_no_scores(
    tiny: Callable[..., TrainConfig],
    train: Callable[..., RunRecord],
    scenes: Path,
    tmp_path: Path,
) -> None:
    train(tiny(policy="centre"), tmp_path / "run")
    run = load_run(tmp_path / "run", torch.device("cpu"))
    words = words_of(run)
    found = results(run, scenes, words)
    assert {result.crop for result in found} == {"centre"}
    assert "score_" not in FORMATS["csv"](found, words, with_head=True)
    assert "bottom" not in FORMATS["table"](found, words, with_head=True)
    assert json.loads(FORMATS["json"](found[:1], words, with_head=True))["scores"] == {}
    assert "proposer" not in rate_text(Tally(num_images=2, seconds=1.0), run)


def test_the_rate_says_where_the_time_went_and_what_the_proposer_costs(run: LoadedRun) -> None:
    tally = Tally(num_images=50, seconds=2.0, waited_s=1.0, proposer_s=0.03, classifier_s=0.5)
    text = rate_text(tally, run)
    assert text.startswith(
        "50 images in 2.0 s, 25 images/s; of the time 50 % waiting for images, 1.5 % the "
        "proposer, 25 % the classifier; the proposer has "
    )
    assert text.endswith(" % of the MACs")
    assert rate_text(Tally(num_images=1, seconds=2.0), run).startswith("1 image in 2.0 s, 0.5 ")
