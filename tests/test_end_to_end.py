"""From nothing to a report, by the command that a newcomer types."""

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.build.build import build_shards
from pipeline.build.config import BuildConfig
from pipeline.verify.verify import verify_shards
from training.saved.record import load_record

ROOT = Path(__file__).parents[1]
FEW = "SCENES=--train 20 --val 3 --size 64"
ARMS = ("whole-s0", "centre-s0", "chooser-s0", "predecessor-g16-s0")
KINDS = ("small", "large")


def reproduce(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(ROOT), "reproduce", f"WORK={work}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `make reproduce` leaves where there are no images, and what it prints."""
    folder = tmp_path_factory.mktemp("work")
    ended = reproduce(folder, "PROFILE=smoke", FEW)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "*** This run uses drawn scenes, not photographs." in ended.stderr
    assert "total: 230 samples" in ended.stdout
    return folder, ended.stdout


@pytest.mark.sweep  # two studies; their parts are tested where they are
@pytest.mark.timeout(300)
def test_reproduce_ends_in_a_report_of_each_kind_that_answers_first(done: tuple[Path, str]) -> None:
    work, printed = done
    for kind in KINDS:
        runs = work / f"runs/smoke-drawn-{kind}"
        page = (runs / "report.html").read_text(encoding="utf-8")
        first_line = page[page.index("Ran on") :].split("</p>")[0]
        assert f"drawn scenes, {kind} objects" in first_line
        assert "200 training and 30 validation images" in first_line
        for arm in ARMS:
            assert arm.removesuffix("-s0") in page
        answer = json.loads((runs / "report.json").read_text())["answer"]
        assert answer.startswith("Choosing is ")
        assert f"smoke-drawn-{kind}: {answer}\n" in printed
        for other in KINDS:
            assert f"<b>drawn scenes, {other} objects:</b> Choosing is " in page


@pytest.mark.sweep
def test_reproduce_leaves_a_finished_record_of_every_arm(done: tuple[Path, str]) -> None:
    for arm in ARMS:
        record = load_record(done[0] / f"runs/smoke-drawn-small/{arm}/record.json")
        assert len(record.epochs) == record.config.own_epochs == (8 if "chooser" in arm else 16)
        assert record.evaluation is not None
        assert record.evaluation.num_samples == 30


@pytest.mark.sweep
@pytest.mark.timeout(300)
def test_reproduce_again_trains_and_builds_nothing_and_writes_the_same_page(
    done: tuple[Path, str],
) -> None:
    work = done[0]
    runs = work / "runs/smoke-drawn-small"
    kept = [*runs.glob("*/record.json"), *(work / "shards").glob("*/*.tar")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    page = (runs / "report.html").read_bytes()
    again = reproduce(work, "PROFILE=smoke", FEW)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "reused 2 finished shards" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert (runs / "report.html").read_bytes() == page


def test_an_unknown_profile_ends_in_one_line(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "PROFILE=huge")
    assert done.returncode == 2
    assert "error: PROFILE must be smoke, quick or full; got huge." in done.stderr


@pytest.mark.sweep  # 13,394 images
@pytest.mark.timeout(600)
def test_every_image_of_the_real_imagenette_is_in_exactly_one_shard(
    real_archive: Path, tmp_path: Path
) -> None:
    config = BuildConfig(
        source=real_archive, out=tmp_path / "shards", canvas_size=32, crop_size=24, glimpse_size=8
    )
    build_shards(config)
    manifest = verify_shards(config.out, workers=2).manifest
    assert {split: manifest.num_samples(split) for split in manifest.splits} == {
        "train": 9469,
        "val": 3925,
    }
    assert not manifest.rejects
    for split in manifest.splits:
        keys = [sample.key for shard in manifest.of_split(split) for sample in shard.samples]
        assert len(set(keys)) == len(keys)
