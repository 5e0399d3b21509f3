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
from training.run.folder import RunPaths
from training.run.record import RunRecord
from training.study.finished import Spread
from training.study.paired import write_p

LOADS = re.compile(r"""(?:\bsrc|\bhref|\bdata|\baction)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""")
HEADINGS = [
    "The chosen crop and its rivals", "Accuracy against compute", "Selection skill",
    "Which crops are chosen", "Does it show the object?", "Latency", "Choices on single images",
    "What was run",
]  # fmt: skip


def render_audit(page: AuditPage) -> str:
    return fill_template(TEMPLATE, page)


def audited(run: Path, shards: ShardFolder, alone: Process, boxes: Path | None = None) -> Audited:
    return audit_run(run, shards=shards, boxes=boxes, workers=1, process=alone)


@pytest.fixture(scope="session")
def by_map(
    train: Callable[..., RunRecord], tiny: Any, opened: ShardFolder, alone: Process, scenes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Audited:  # fmt: skip
    """Two seeds that choose by a map, and a run of the whole image beside them."""
    folder = tmp_path_factory.mktemp("by-map")
    for seed in (0, 1):
        train(tiny(proposer="map", seed=seed), folder / f"map-s{seed}")
    train(tiny(policy="whole", seed=0), folder / "whole-s0")
    return audited(folder / "map-s1", opened, alone, scenes / "boxes.csv")


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
    assert re.findall(r"<h2>(.*?)</h2>", html) == HEADINGS


def test_every_rival_is_in_the_table_and_in_the_chart(html: str, by_map: Audited) -> None:
    table, chart = html.split("</table>")[0], html.split("<svg")[1].split("</svg>")[0]
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


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    for found in LOADS.finditer(html):
        target = found[1] or found[2]
        assert target.startswith(("#", "data:image/jpeg;base64,", "data:image/png;base64,")), target
    assert "<script" not in html
    assert "<link" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_a_map_lies_over_the_canvases_with_its_scale(html: str, by_map: Audited) -> None:
    page = make_audit_page(by_map)
    assert page.choices.heat is not None
    assert html.count('class="heat"') == len(page.choices.rows) == 8
    assert f"{page.choices.heat.high:.2f}</span>" in html
    assert "the smoothed map’s maximum lies in a box" in html


def test_a_prior_is_named_beside_the_map(html: str, by_map: Audited) -> None:
    page = make_audit_page(by_map)
    config = replace(page.run.record.config, position_prior=True)
    run = replace(page.run, record=replace(page.run.record, config=config))
    assert "A crop’s score is the map’s mean over it.</p>" in html
    told = "mean over it, plus a score learnt for its place.</p>"
    assert told in render_audit(replace(page, run=run))


def test_other_proposers_show_the_chosen_box_alone(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, alone: Process
) -> None:
    page = make_audit_page(audited(finished[0].folder, opened, alone))
    html = render_audit(page)
    assert page.choices.rows
    assert page.choices.heat is None
    assert 'class="heat"' not in html
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
    for raw in ("<script", "<i>run", "<img src=x"):
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
    picture = make_audit_page(by_map).choices.picture
    assert len(picture) < 300_000
    Image.open(io.BytesIO(picture)).load()
    assert base64.b64encode(picture).decode() in html
