import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from planned import config, files

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.parts.build_part import build_part
from pipeline.parts.merge import merge_parts
from pipeline.parts.plan import plan_parts

OPTIONS = ("--canvas-size=64", "--crop-size=48", "--glimpse-size=16", "--no-exif", "--codec=png")

pytestmark = pytest.mark.usefixtures("small_shards")


def test_missing_and_damaged_shards_are_named_with_the_command_that_builds_them(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out with space"
    assert srp_data("plan", image_tree, out, *OPTIONS).exit_code == 0
    built = srp_data("build-shards", image_tree, out, *OPTIONS, "-j1", "--shards", "0-3,5-7")
    assert built.stdout == (
        "7 shards are finished, 0 of them before; 7 of the plan's 9 are. 2 of other parts are "
        "not.\n"
    )
    (out / "train-000001.tar").write_bytes(b"cut")
    next(out.glob(".build/*/train-000002.tar.json")).write_text("{")
    before = files(out)
    refused = srp_data("merge", out)
    assert refused.exit_code == 3
    message, command = refused.stderr.splitlines()[-1].split("Build them with: ")
    assert message == (
        "error: every shard of the plan must be there, with the bytes of its record; got 4 of 9 "
        f"missing or damaged in {out}. "
    )
    assert files(out) == before
    program, *words = shlex.split(command)
    assert program == "srp-data"
    assert words[-2:] == ["--shards", "1-2,4,8"]
    finished = srp_data(*words)
    assert finished.exit_code == 0, finished.stderr
    assert finished.stdout.endswith(f"9 of the plan's 9 are. Publish: srp-data merge {out}\n")
    merged = srp_data("merge", out)
    assert merged.exit_code == 0
    assert merged.stdout.startswith("train: 18 images in, 18 samples out, 6 shards, ")
    assert srp_data("verify", out).exit_code == 0


def test_a_merge_of_a_finished_folder_says_that_it_is_merged(whole: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"got none in .* It is merged already: check it with srp"
    ):
        merge_parts(whole, max_rejects=0, workers=1)


def test_a_merge_that_was_killed_after_its_manifest_is_finished_by_the_next(
    image_tree: Path, planned: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_part(config(image_tree, planned), "1/1")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.output.drop_records", lambda _: None)  # killed before it
        merge_parts(planned, max_rejects=0, workers=1)
    assert (planned / ".build").exists()
    merge_parts(planned, max_rejects=0, workers=1)
    assert files(planned) == files(whole)


def test_a_whole_build_goes_on_where_parts_ended(
    image_tree: Path, planned: Path, whole: Path, srp_data: Any
) -> None:
    build_part(config(image_tree, planned), "0-3")
    sizes = ("--canvas-size=64", "--crop-size=48", "--glimpse-size=16", "-j1")
    assert (
        "reused 4 finished shards" in srp_data("build-shards", image_tree, planned, *sizes).stderr
    )
    assert files(planned) == files(whole)


def test_planning_again_keeps_finished_shards_and_another_plan_is_refused(
    image_tree: Path, planned: Path
) -> None:
    build_part(config(image_tree, planned), "0-3")
    before = files(planned)
    plan_parts(config(image_tree, planned))
    assert files(planned) == before
    with pytest.raises(ConfigError, match=r"\(crop_size 48 there, 40 requested\)"):
        plan_parts(config(image_tree, planned, crop_size=40))


def test_a_finished_folder_is_not_planned(image_tree: Path, whole: Path) -> None:
    before = files(whole)
    with pytest.raises(ConfigError, match=r"not be finished to be planned; got .* a manifest.js"):
        plan_parts(config(image_tree, whole))
    assert files(whole) == before
    assert not (whole / ".build").exists()


def test_a_record_of_another_number_of_images_is_not_believed(
    image_tree: Path, planned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_part(config(image_tree, planned), "1/1")
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda _: 2)
    plan_parts(config(image_tree, tmp_path / "other"))
    shutil.copy(tmp_path / "other/.build/plan.jsonl", planned / ".build/plan.jsonl")
    with pytest.raises(VerificationError, match="got 14 of 14 missing or damaged"):
        merge_parts(planned, max_rejects=0, workers=1)
