"""One page that says what was run, claims no more than the runs show, and loads nothing."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pipeline import ShardFolder
from pipeline.common.errors import CheckpointError, ConfigError
from pipeline.datasets.scenes import CLASSES
from training.report import study_page
from training.report.html import fill_template, write_duration, write_macs, write_spread
from training.report.study_page import TEMPLATE, StudyPage, make_study_page, write_study
from training.saved.record import DataRecord, RunRecord
from training.study.finished import FinishedRun, group_arms
from training.study.paired import few_seeds
from training.study.sentences import DRAWN_CLASSES, summarise_arms

MakeRun = Callable[..., FinishedRun]


def save(folder: Path, *runs: FinishedRun) -> Path:
    for run in runs:
        own = folder / run.record.name
        own.mkdir(parents=True)
        run.record.save(own / "record.json")
        if run.logits is not None:
            run.logits.save(own / "logits.safetensors", weights=("",))
    return folder


def only_page(folder: Path, **options: Any) -> Path:
    """Write the page about a folder whose runs are on one data set."""
    (page,) = write_study([folder], **options)
    return page


@pytest.fixture(scope="session")
def runs(make_run: MakeRun) -> list[FinishedRun]:
    """One seed of a policy that chooses, of the whole image and of the centre."""
    return [
        make_run("expected-g16-s0", policy="expected", glimpse_size=16, seed=0, accuracy=0.7),
        make_run("whole-s0", policy="whole", seed=0),
        make_run("centre-s0", policy="centre", seed=0),
    ]


@pytest.fixture(scope="session")
def html(
    runs: list[FinishedRun], scene_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The page about these runs."""
    folder = save(tmp_path_factory.mktemp("runs"), *runs)
    return only_page(folder, shards=[scene_shards]).read_text(encoding="utf-8")


def render_page(page: StudyPage) -> str:
    return fill_template(TEMPLATE, page)


def visible(html: str) -> str:
    """Take the markup off."""
    return re.sub(r"<[^>]+>", " ", html.split("<body>")[1])


def test_pages_that_are_written_together_begin_with_the_answers_of_all(
    make_run: MakeRun, tmp_path: Path
) -> None:
    photos = replace(make_run("whole-s0", policy="whole").record.data, fingerprint="f" * 64)
    for name, data in (("plain", {}), ("scattered", {"data": photos})):
        save(
            tmp_path / name,
            make_run("chooser-s0", policy="expected", seed=0, accuracy=0.9, **data),
            make_run("whole-s0", policy="whole", seed=0, **data),
        )
    folders = [tmp_path / "plain", tmp_path / "scattered"]
    pages = write_study(folders, notes=["photos", "photos, scattered"])
    assert pages == tuple(folder / "report.html" for folder in folders)
    answers = []
    for page in pages:
        found = re.findall(r'<p class="summary">(.*?)</p>', page.read_text(encoding="utf-8"))
        assert [text.split(":")[0] for text in found] == ["<b>photos", "<b>photos, scattered"]
        answers.append(found)
        own = json.loads(page.with_suffix(".json").read_text())["answer"]
        assert own in [unescape(text.split("</b> ")[1]) for text in found]
    assert answers[0] == answers[1]
    with pytest.raises(ConfigError) as caught:
        write_study(folders, notes=["photos"])
    assert str(caught.value) == (
        "--note must name the data of each RUNS; got 1 for 2. Give one for each, in their order."
    )


def test_one_page_for_several_folders_on_the_same_shards_is_refused(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folders = [save(tmp_path / name, make_run("whole-s0", policy="whole")) for name in "ab"]
    out = tmp_path / "page.html"
    with pytest.raises(ConfigError) as caught:
        write_study(folders, out=out)
    assert str(caught.value) == (
        f"-o/--output must be one page for each RUNS; got {out} for several on the same shards. "
        "Leave it out: each has its own."
    )
    assert list(tmp_path.glob("*.html")) == []
    assert write_study(folders) == tuple(folder / "report.html" for folder in folders)


def test_the_answer_comes_first_then_the_data_then_pictures_then_tables(
    html: str, runs: list[FinishedRun]
) -> None:
    page = make_study_page(runs, data_note="Imagewoof")
    answer, first = re.findall(r"<p[^>]*>(.*?)</p>", render_page(page).split("</h1>")[1])[:2]
    assert unescape(answer) == page.summary[0]
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == [
        "What it looked at", "Learning curves", "Accuracy against glimpse size and compute",
        "Which crops are chosen", "Which classes are mistaken", "Results", "How sure the choice is",
        "Classes", "How this was made", "Words",
    ]  # fmt: skip
    for part in ("Imagewoof", "10 classes", "70 training", "29 validation", "48 px", "32 px"):
        assert part in first


def test_drawn_scenes_are_called_so_loudly_and_photos_are_not(
    html: str, runs: list[FinishedRun], make_run: MakeRun
) -> None:
    assert set(CLASSES) == DRAWN_CLASSES
    assert "drawn scenes, not photographs" in html
    photos = replace(runs[0].record.data, classes=tuple(f"n{number}" for number in range(10)))
    page = render_page(make_study_page([make_run("whole-s0", data=photos, policy="whole", seed=0)]))
    assert "not photographs" not in page


def test_every_arm_is_named_with_its_figures(html: str, runs: list[FinishedRun]) -> None:
    table = html.split('<table class="results">')[1].split("</table>")[0]
    for arm in group_arms(runs):
        row = table.split(f">{arm.name}</th>")[1].split("</tr>")[0]
        assert f"{arm.top1.mean:.1f} ± –" in row
        assert write_macs(arm.classifier_macs) in row


def test_the_same_runs_give_the_same_page(
    html: str, runs: list[FinishedRun], scene_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pages" / "again.html"
    folder = save(tmp_path / "runs", *runs[::-1])
    assert only_page(folder, shards=[scene_shards], out=out) == out
    assert out.read_text(encoding="utf-8") == html


def test_one_seed_is_said_to_be_one_seed_and_how_much_of_it_is_noise(html: str) -> None:
    assert re.search(r"differences below about \d+\.\d points can be chance", visible(html))


def test_several_seeds_show_their_sd(make_run: MakeRun) -> None:
    several = [make_run(f"whole-s{seed}", policy="whole", seed=seed) for seed in range(3)]
    (arm,) = group_arms(several)
    html = render_page(make_study_page(several))
    assert write_spread(arm.top1) in html
    assert "One seed" not in html
    assert few_seeds(3) in html
    assert "seeds are few" not in render_page(make_study_page([*several, make_run("whole-s3",
                                                         policy="whole", seed=3)]))  # fmt: skip


def spoken(make_run: MakeRun, ours: float, other: float, **options: Any) -> str:
    chosen = make_run("expected-s0", policy="expected", seed=0, accuracy=ours)
    return " ".join(
        summarise_arms(
            group_arms([chosen, make_run("whole-s0", accuracy=other, policy="whole", **options)])
        )
    )


def test_better_and_worse_are_said_of_a_significant_paired_test_alone(make_run: MakeRun) -> None:
    better, worse = spoken(make_run, 1.0, 0.2, seed=0), spoken(make_run, 0.2, 1.0, seed=0)
    assert "points more accurate than whole" in better
    assert "McNemar mid-p, seed 0: p < 0.001" in better
    assert "points less accurate than whole" in worse
    assert better.startswith("Choosing is worth it here, at the same compute for each image: ")
    assert worse.startswith("Choosing is not worth it here; take the whole image: expected ")
    close = spoken(make_run, 0.5, 0.5, seed=0)
    unpaired = spoken(make_run, 1.0, 0.2, seed=1)
    assert close.startswith("Choosing is not shown to be worth it here: ")
    assert unpaired.startswith("Whether choosing is worth it is not known: no run of the whole ")
    assert "can be chance" in close
    assert "without a paired test" in unpaired
    assert not re.search("more accurate|less accurate", close + unpaired)


def test_p_is_multiplied_by_the_arms_that_the_best_was_picked_from(make_run: MakeRun) -> None:
    picked = [make_run(f"expected-g{px}-s0", policy="expected", glimpse_size=px, seed=0)
              for px in (8, 16)]  # fmt: skip
    text = " ".join(summarise_arms(group_arms([*picked, make_run("whole-s0", policy="whole",
                                                                 seed=0)])))  # fmt: skip
    assert "Of 2 arms that choose a crop" in text
    assert "times the 2 arms it was picked from" in text


def test_runs_that_choose_nothing_make_a_page_as_well(make_run: MakeRun) -> None:
    html = render_page(make_study_page([make_run("whole-s0", policy="whole", seed=0)]))
    assert "No run chose its crop" in html


def test_markup_in_names_is_text(
    tmp_path: Path,
    make_shards: Callable[..., Any],
    jpeg: Callable[..., bytes],
    make_run: MakeRun,
) -> None:
    for split in ("train", "val"):
        for number, name in enumerate(("<script>", "a&b")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            (folder / "<img src=x>.JPEG").write_bytes(jpeg(number))
    make_shards(tmp_path / "images", tmp_path / "shards")
    opened = ShardFolder.open(tmp_path / "shards")
    data = DataRecord.of(opened.manifest)
    run = make_run("<i>run<i>", data=data, policy="blend", seed=0)
    page = make_study_page([run], shards=opened, data_note="<u>")
    assert page.gallery
    html = render_page(page)
    assert html.count("<script") == 1  # ours
    for raw in ("<i>run", "<u>", "<img src=x"):
        assert raw not in html
    assert "&lt;script&gt;" in html


def test_the_map_of_a_trained_run_is_on_the_page_and_lost_checkpoints_cost_the_map_alone(
    train: Callable[..., RunRecord], tiny: Callable[..., Any], scene_shards: Path, tmp_path: Path
) -> None:
    train(tiny(proposer="map", seed=0), tmp_path / "map-s0")
    html = only_page(tmp_path, shards=[scene_shards]).read_text(encoding="utf-8")
    assert html.count('class="heat"') == 2 * html.count('class="tile"') == 2 * 29
    for name in ("last", "best"):
        (tmp_path / "map-s0" / f"{name}.safetensors").unlink(missing_ok=True)
    html = only_page(tmp_path, shards=[scene_shards]).read_text(encoding="utf-8")
    assert html.count('class="tile"') == 29
    assert 'class="heat"' not in html
    assert "The run’s checkpoint is gone" in html


def test_without_the_runs_own_shards_one_line_says_why_there_are_no_pictures(
    runs: list[FinishedRun], opened: ShardFolder
) -> None:
    other = replace(opened, manifest=replace(opened.manifest, fingerprint="other"))
    for shards, reason in ((None, "--shards SHARDS"), (other, "not those of the runs")):
        page = make_study_page(runs, shards=shards)
        assert page.gallery is None
        assert reason in render_page(page)
        assert "data:image" not in render_page(page)


def test_unfinished_runs_are_listed_with_their_epochs_and_in_no_figure(
    runs: list[FinishedRun], make_run: MakeRun, tmp_path: Path
) -> None:
    folder = save(tmp_path, *runs)
    begun = make_run("blend-s0", policy="blend", seed=0)
    record = replace(begun.record, epochs=begun.record.epochs[:1], evaluation=None)
    (folder / "blend-s0").mkdir()
    record.save(folder / "blend-s0" / "record.json")
    html = only_page(folder).read_text(encoding="utf-8")
    assert "blend-s0 (1 of 2 epochs)" in html
    assert html.count("blend") == 1


def test_the_page_says_how_it_was_made(html: str, runs: list[FinishedRun]) -> None:
    made = html.split("How this was made")[1]
    for part in ("abc1234", "CPU", runs[0].record.data.fingerprint, "3 min 3 s", "glimpse size"):
        assert part in made


def test_no_runs_end_in_one_line_that_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs runs; got none in .*srp-train from SHARDS"):
        only_page(tmp_path)
    with pytest.raises(ConfigError, match="which does not exist"):
        only_page(tmp_path / "none")


def test_unfinished_runs_alone_end_in_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("blend-s0", policy="blend", seed=0)
    (tmp_path / "blend-s0").mkdir()
    replace(run.record, evaluation=None).save(tmp_path / "blend-s0" / "record.json")
    with pytest.raises(ConfigError, match=r"got 1 unfinished in .*--resume"):
        only_page(tmp_path)


@pytest.fixture(scope="session")
def mixed(
    train: Callable[..., RunRecord], tiny: Callable[..., Any], small_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """Runs on two data sets in one folder, trained. Only read it."""
    folder = tmp_path_factory.mktemp("mixed")
    small = ShardFolder.open(small_shards)
    for policy in ("straight-through", "whole"):
        train(tiny(policy=policy, seed=0), folder / f"{policy}-s0")
    train(tiny(policy="whole", seed=0, batch_size=2), folder / "small-s0", shards=small)
    return folder


def test_each_data_set_of_a_folder_has_a_page_of_its_own(
    mixed: Path,
    opened: ShardFolder,
    small_shards: Path,
    srp_train: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "page.html"
    result = srp_train("report", mixed, "-o", out)
    assert result.exit_code == 0, result.output
    names = [Path(opened.place).name, small_shards.name]
    pages = [tmp_path / f"page-{name}.html" for name in (names[1], names[0])]
    assert result.stdout == "".join(f"{page}\n" for page in pages)
    small, scenes = (page.read_text(encoding="utf-8") for page in pages)
    assert ">small</th>" in small
    assert ">whole</th>" in scenes
    assert ">straight-through</th>" in scenes
    assert ">small</th>" not in scenes
    assert ">whole</th>" not in small
    assert {path.name for path in tmp_path.glob("*.json")} == {
        f"page-{name}.json" for name in names
    }


def test_shards_pick_the_runs_of_a_mixed_folder(
    mixed: Path, small_shards: Path, srp_train: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    result = srp_train("report", mixed, "--shards", small_shards, "-o", out, "--note", "few")
    assert result.stdout == f"{out}\n"
    html = out.read_text(encoding="utf-8")
    assert ">small</th>" in html
    assert ">whole</th>" not in html
    assert "Ran on few: " in html


def test_what_cannot_be_picked_from_a_mixed_folder_is_one_line(
    mixed: Path, five_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(
        ConfigError, match=r"--note must name one data set; got runs on 2 in .*--sh"
    ):
        write_study([mixed], out=out, notes=["few"])
    with pytest.raises(
        ConfigError, match=r"--shards must be those of runs in .*, which are on 2 dat"
    ):
        write_study([mixed], shards=[five_shards], out=out)
    assert not list(tmp_path.iterdir())


def test_data_sets_whose_shards_had_one_name_are_told_apart(
    runs: list[FinishedRun], make_run: MakeRun, tmp_path: Path
) -> None:
    other = replace(runs[0].record.data, fingerprint="0123456789")
    save(tmp_path, runs[0], make_run("whole-s7", data=other, policy="whole", seed=7))
    own = runs[0].record.data.fingerprint[:8]
    assert [path.name for path in write_study([tmp_path])] == [
        f"report-shards-{own}.html", "report-shards-01234567.html",
    ]  # fmt: skip


def test_damaged_logits_are_named_and_lost_ones_only_cost_their_tests(
    runs: list[FinishedRun], tmp_path: Path
) -> None:
    folder = save(tmp_path, *runs)
    logits = folder / "whole-s0" / "logits.safetensors"
    logits.write_bytes(logits.read_bytes()[:99])
    with pytest.raises(CheckpointError, match=r"a run's logits must .*whole-s0"):
        only_page(folder)
    logits.unlink()
    html = only_page(folder).read_text(encoding="utf-8")
    assert "without a paired test" in html


def test_the_committed_records_make_a_report(tmp_path: Path) -> None:
    results = Path(study_page.__file__).parents[1] / "results" / "imagenette-64" / "canvas-80"
    for path in results.glob("*-s42.json"):
        (tmp_path / path.stem).mkdir()
        shutil.copy(path, tmp_path / path.stem / "record.json")
    html = only_page(tmp_path).read_text(encoding="utf-8")
    for name in ("tuned-map-prior-g64", "distilled-map-prior-g64", "random", "whole-tuned"):
        assert f">{name}</th>" in html
    told = json.loads((results / "report.json").read_text(encoding="utf-8"))
    old = {arm["name"]: arm["top1_oracle"]["mean"] for arm in told["arms"]}
    new = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {arm["name"]: arm["top1_any_right"]["mean"] for arm in new["arms"]} == old


def test_numbers_are_written_for_people() -> None:
    assert [write_macs(count) for count in (12, 120_000, 1_814_000_000)] == [
        "12",
        "120 k",
        "1.81 G",
    ]
    assert [write_duration(s) for s in (59.4, 61, 3725)] == ["59 s", "1 min 1 s", "1 h 2 min"]
    assert write_spread(None) == "–"
