"""Parts of a build: equal to a build at once, and refused where they do not fit their plan."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from planned import SIZES, config, files

from pipeline.build.build import build_shards, start_workers
from pipeline.common.errors import ConfigError, RejectsError, SourceError
from pipeline.parts.build_part import build_part
from pipeline.parts.merge import merge_parts
from pipeline.parts.plan import plan_parts
from pipeline.verify.verify import verify_shards
from pipeline.write.resume import open_part, open_state

REPO = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.usefixtures("small_shards")


def test_five_parts_in_any_order_give_the_files_of_one_build(
    image_tree: Path, planned: Path, whole: Path
) -> None:
    for part in (4, 1, 5, 2, 3):
        built = build_part(config(image_tree, planned), f"{part}/5")
    assert built.num_recorded == built.num_shards == 9
    assert not (planned / "manifest.json").exists()
    merged = merge_parts(planned, max_rejects=0, workers=2)
    assert files(planned) == files(whole)
    assert verify_shards(planned, workers=1).manifest == merged
    again = build_shards(config(image_tree, planned))
    assert again.reused == tuple(shard.name for shard in merged.shards)
    assert files(planned) == {**files(whole), ".verified.json": files(planned)[".verified.json"]}


def test_a_source_that_lies_elsewhere_serves_a_part(
    image_tree: Path, planned: Path, whole: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "mounted/here"
    shutil.copytree(image_tree, elsewhere)
    build_part(config(elsewhere, planned), "0-4")
    build_part(config(image_tree, planned), "5-8")
    merge_parts(planned, max_rejects=0, workers=1)
    assert files(planned) == files(whole)


def test_names_that_are_no_text_are_found_again(own_tree: Path, tmp_path: Path) -> None:
    odd = os.fsencode(own_tree / "train/cat") + b"/a\\x41\xff\\ \xc3\xa4.JPEG"
    os.rename(own_tree / "train/cat/cat_000.JPEG", odd)
    build_shards(config(own_tree, tmp_path / "whole"))
    plan_parts(config(own_tree, tmp_path / "out"))
    build_part(config(own_tree, tmp_path / "out"), "1/1")
    assert not merge_parts(tmp_path / "out", max_rejects=0, workers=1).rejects
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_part_that_is_built_again_keeps_what_is_finished(image_tree: Path, planned: Path) -> None:
    first = build_part(config(image_tree, planned), "2-4")
    assert (first.reused, first.num_recorded) == ((), 3)
    (planned / "train-000003.tar").write_bytes(b"cut")
    again = build_part(config(image_tree, planned), "2-4")
    assert again.reused == ("train-000002.tar", "train-000004.tar")


def test_more_parts_than_shards_leave_some_with_nothing_to_do(
    image_tree: Path, planned: Path
) -> None:
    built = build_part(config(image_tree, planned), "1/10")
    assert (built.numbers, built.num_recorded) == ((), 0)


def test_two_parts_that_build_the_same_shards_at_once_do_no_harm(
    image_tree: Path, planned: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = config(image_tree, planned)
    start_workers(part)  # once: it changes this process's environment for a moment
    monkeypatch.setattr("pipeline.parts.build_part.start_workers", lambda _: None)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(build_part, part, shards) for shards in ("1/1", "0-8")]
    assert {built.result().num_recorded for built in both} == {9}
    assert not list(planned.glob(".*.partial"))
    merge_parts(planned, max_rejects=0, workers=1)
    assert files(planned) == files(whole)


def start_part(source: Path, out: Path, *, shards: str) -> subprocess.Popen[str]:
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    words = ["build-shards", str(source), str(out), *sizes, "--shards", shards]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", *words],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_preempted_part_says_how_to_resume_and_then_builds_what_is_missing(
    image_tree: Path, planned: Path, whole: Path
) -> None:
    process = start_part(image_tree, planned, shards="1/1")
    while not list(planned.glob(".build/*/*.tar.json")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert re.search(
        rf"error: stopped by SIGTERM. Resume with: .* build-shards {image_tree}", errors
    )
    assert errors.rstrip().endswith("--shards 1/1")
    num_kept = len(list(planned.glob(".build/*/*.tar.json")))
    assert 1 <= len(build_part(config(image_tree, planned), "1/1").reused) == num_kept < 9
    merge_parts(planned, max_rejects=0, workers=1)
    assert files(planned) == files(whole)


def test_a_part_with_other_options_names_what_differs(image_tree: Path, planned: Path) -> None:
    other = config(image_tree, planned, glimpse_size=24, exif=False)
    with pytest.raises(ConfigError) as caught:
        build_part(other, "1/2")
    assert str(caught.value) == (
        f"a part must be of the plan in OUT; got another in {planned}/.build/plan.jsonl "
        "(glimpse_size 16 there, 24 requested; exif True there, False requested). Give the "
        "options that srp-data plan was given, or plan another folder."
    )


@pytest.mark.parametrize("change", ["larger", "missing"])
def test_a_source_that_changed_since_the_plan_is_refused_by_the_name_of_its_file(
    change: str, own_tree: Path, tmp_path: Path
) -> None:
    plan_parts(config(own_tree, tmp_path / "out"))
    image = own_tree / "train/dog/dog_003.JPEG"
    size = image.stat().st_size
    image.write_bytes(image.read_bytes() + b"x") if change == "larger" else image.unlink()
    got = size + 1 if change == "larger" else 0
    with pytest.raises(
        SourceError,
        match=rf"^the source must be as when it was planned; got {got:,} bytes in {image}, which "
        rf"had {size:,}\. Give that source, or plan another folder\.$",
    ):
        build_part(config(own_tree, tmp_path / "out"), "1/1")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_shards_beyond_the_plan_are_refused(image_tree: Path, planned: Path) -> None:
    with pytest.raises(ConfigError, match="must be of the plan's 9 shards, 0 to 8; got 0-9"):
        build_part(config(image_tree, planned), "0-9")


def test_an_archive_is_refused_for_parts(image_archive: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"needs a folder of images; got {image_archive}. Unpa"):
        plan_parts(config(image_archive, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_a_plan_the_command_that_makes_one_is_named(
    image_tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ConfigError,
        match=f"^OUT must hold a plan; got none in {out}. Make one with: srp-data plan SOURCE ",
    ):
        build_part(config(image_tree, out), "1/2")
    assert not out.exists()


def test_parts_with_more_rejects_than_allowed_end_at_once_and_are_kept(
    own_tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (own_tree / "train/cat/cat_000.JPEG").write_bytes(b"no image")
    plan_parts(config(own_tree, out))
    with pytest.raises(RejectsError, match=r"got 1 in these shards alone, the first train/cat/cat"):
        build_part(config(own_tree, out), "1/1")
    assert len(list(out.glob("*.tar"))) == 9
    with pytest.raises(RejectsError, match="Add --max-rejects 1 to leave them out"):
        merge_parts(out, max_rejects=0, workers=1)
    merge_parts(out, max_rejects=1, workers=1)
    whole = tmp_path / "whole"
    build_shards(config(own_tree, whole, max_rejects=1))
    assert files(out) == files(whole)


def test_a_plan_or_a_merge_is_refused_beside_a_part_and_a_part_beside_them(
    image_tree: Path, planned: Path
) -> None:
    with open_part(planned):
        with pytest.raises(ConfigError, match="only one build at a time may write OUT"):
            merge_parts(planned, max_rejects=0, workers=1)
        with open_part(planned):
            pass
    with (
        open_state(planned),
        pytest.raises(
            ConfigError,
            match=rf"^parts may .* only; got {planned}, which process {os.getpid()} on .*",
        ),
    ):
        build_part(config(image_tree, planned), "1/9")


def test_where_the_file_system_has_no_locks_parts_are_built_all_the_same(
    image_tree: Path, planned: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("pipeline.common.file_lock.fcntl.flock", no_locks)
    build_part(config(image_tree, planned), "1/1")
    with open_state(planned), pytest.raises(ConfigError, match="beside each other only"):
        build_part(config(image_tree, planned), "1/9")
    merge_parts(planned, max_rejects=0, workers=1)
    assert files(planned) == files(whole)
