"""The page of an audit says what the audit found, in order, escapes names and loads nothing."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import ShardFolder
from training.audit.run import Audited, audit_run
from training.data.processes import Process
from training.report.audit_page import (
    TEMPLATE,
    AuditPage,
    describe_collapse,
    make_audit_page,
    write_audit,
)
from training.report.html import fill_template
from training.report.result_picture import rank_choices
from training.saved.folder import RunPaths
from training.saved.record import RunRecord
from training.study.finished import Spread
from training.study.paired import write_p

HEADINGS = [
    "What it looked at", "Accuracy against compute", "The chosen crop and its rivals",
    "Selection skill", "Which crops are chosen", "Does it show the object?", "Latency",
    "What was run",
]  # fmt: skip


def render_audit(page: AuditPage) -> str:
    return fill_template(TEMPLATE, page)


def audited(run: Path, shards: ShardFolder, alone: Process, boxes: Path | None = None) -> Audited:
    return audit_run(run, shards=shards, boxes=boxes, workers=1, process=alone)


@pytest.fixture(scope="session")
def html(by_map: Audited) -> str:
    return render_audit(make_audit_page(by_map))


def test_the_verdict_is_the_headline_and_the_parts_follow_in_order(
    html: str, by_map: Audited
) -> None:
    (headline,) = re.findall(r"<h1>(.*?)</h1>", html)
    assert headline == by_map.audit.verdict
    assert by_map.audit.notes
    for note in by_map.audit.notes:
        assert f"<p>{note}</p>" in html
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == HEADINGS


def test_every_rival_is_in_the_table_and_in_the_chart(html: str, by_map: Audited) -> None:
    table = html.split('id="tables"')[1].split("</table>")[0]
    chart = html.split("<svg")[1].split("</svg>")[0]
    for rival in by_map.audit.rivals:
        row = table.split(f">{rival.name}</th>")[1].split("</tr>")[0].replace("−", "-")
        if rival.test is not None:
            assert f"<td>{rival.test.low:+.1f} to {rival.test.high:+.1f}</td>" in row
            counted = rival.test.times(rival.tries)
            told = [
                "–" if p is None else write_p(p).removeprefix("= ").replace("<", "&lt;")
                for p in (counted.p, counted.p_over_seeds)
            ]
            assert row.endswith(f"<td>{told[0]}</td><td>{told[1]}</td>")
    for label in ("the chosen crop", "any crop right", "oracle", "the mean of all",
                  "run whole"):  # fmt: skip
        assert label in chart


def test_a_map_lies_over_the_images_with_its_scale_and_boxes(html: str, by_map: Audited) -> None:
    gallery = make_audit_page(by_map).gallery
    assert gallery is not None
    assert gallery.heat is not None
    assert html.count('class="heat"') == 2 * len(gallery.images)  # in the grid, and in the panel
    assert html.count('class="object"') == sum(len(image.boxes) for image in gallery.images) == 29
    assert f"{gallery.heat.high:.2f}</span>" in html
    assert "the smoothed map’s maximum lies in a box" in html


def test_a_prior_is_named_beside_the_map(html: str, by_map: Audited) -> None:
    page = make_audit_page(by_map)
    assert page.pictures is not None
    gallery = replace(page.pictures.gallery, has_prior=True)
    assert "A crop’s score is the map’s mean over it.</p>" in html
    told = "mean over it, plus a score learnt for its place.</p>"
    assert told in render_audit(replace(page, pictures=replace(page.pictures, gallery=gallery)))


def test_other_proposers_show_the_chosen_box_alone(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, alone: Process
) -> None:
    page = make_audit_page(audited(finished[0].folder, opened, alone))
    html = render_audit(page)
    assert page.gallery is not None
    assert page.gallery.heat is None
    assert 'class="heat"' not in html
    assert "gallery-maps" not in html.split("<script>")[0]
    assert "Does it show the object?" not in html


def test_the_page_says_what_was_run(html: str, by_map: Audited) -> None:
    made = html.split("What was run")[1]
    data = by_map.run.record.data
    for part in (data.fingerprint, by_map.run.record.hardware, "proposer map", "policy"):
        assert part in made
    assert "Options that differ between the arms" in made


def test_markup_in_names_is_text(
    tmp_path: Path, make_shards: Callable[..., Any], jpeg: Callable[..., bytes], alone: Process,
    train: Callable[..., RunRecord], tiny: Any,
) -> None:  # fmt: skip
    for split in ("train", "val"):
        for number, name in enumerate(("<script>", "a&b")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            (folder / "<img src=x>.JPEG").write_bytes(jpeg(number))
    make_shards(tmp_path / "images", tmp_path / "shards", layout="canvas")
    opened = ShardFolder.open(tmp_path / "shards")
    train(tiny(batch_size=2, shift=0), tmp_path / "<i>run<i>", shards=opened)
    found = audited(tmp_path / "<i>run<i>", opened, alone)
    page, *_ = write_audit(found, tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert html.count("<script") == 1  # ours
    for raw in ("<i>run", "<img src=x"):
        assert raw not in html
    assert "&lt;script&gt;" in html


def test_collapse_is_told_from_the_entropies(by_map: Audited) -> None:
    def told(of_mean: float, mean: float) -> str:
        return describe_collapse(
            replace(
                by_map.audit, entropy_of_mean=Spread(of_mean, None), mean_entropy=Spread(mean, None)
            )
        )

    assert told(0.01, 0.01).startswith("The choice has collapsed to one crop: ")
    assert "hardly sure of any image" in told(1.79, 1.75)
    assert told(1.6, 0.4).startswith("The choice has not collapsed: ")


def test_the_picture_shows_the_choice_and_its_rivals_with_the_accuracy_of_each(
    html: str, by_map: Audited
) -> None:
    logits = by_map.run.logits
    assert logits is not None
    choices = rank_choices(by_map, logits)
    assert [choice.label for choice in choices][:2] == ["chosen crop", "whole image"]
    assert len(choices) == 4
    labels = logits.labels_N.tolist()
    for choice in choices[:3]:  # the fourth draws a random crop, and is scored by its expectation
        hits = [a == b for a, b in zip(choice.predicted, labels, strict=True)]
        assert 100 * sum(hits) / len(hits) == pytest.approx(choice.top1)
    whole = by_map.shards.crop_layout.names.index("full")
    assert set(choices[1].crops) == {whole}
    pictures = make_audit_page(by_map).pictures
    assert pictures is not None
    picture = pictures.result
    assert len(picture) < 300_000
    Image.open(io.BytesIO(picture)).load()
    assert base64.b64encode(picture).decode() in html
