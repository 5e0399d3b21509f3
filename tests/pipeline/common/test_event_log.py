import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.event_log import STAGE_S, Log


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_command_logs_its_start_its_stages_and_its_end(
    shards: Path, srp_data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    assert srp_data("--log", str(path), "verify", "--all", str(shards)).exit_code == 0
    lines = lines_of(path)
    assert [line["event"] for line in lines] == ["start", "stage", "stage", "end"]
    assert lines[0]["command"][1:] == ["--log", str(path), "verify", "--all", str(shards)]
    stages = [(line["stage"], line["done"], line["total"]) for line in lines[1:3]]
    assert stages == [("verifying", 0, 27), ("verifying", 27, 27)]
    assert lines[-1]["status"] == 0
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert all(time.tzinfo == UTC for time in times)
    assert srp_data("verify", str(tmp_path)).exit_code == 2
    assert len(lines_of(path)) == 4  # without the option nothing is appended


def test_a_failure_is_logged_with_its_status_behind_what_was_there(
    srp_data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "before"}\n')
    result = srp_data("--log", str(path), "verify", str(tmp_path / "none"))
    before, start, end = lines_of(path)
    assert (before["event"], start["event"]) == ("before", "start")
    assert (end["event"], end["status"]) == ("end", result.exit_code)
    assert f"error: {end['error']}\n" == result.stderr


def test_a_log_that_cannot_be_written_is_an_error_at_once(srp_data: Any, tmp_path: Path) -> None:
    result = srp_data("--log", str(tmp_path / "no/log.jsonl"), "verify", str(tmp_path))
    assert result.exit_code == 2
    path = tmp_path / "no/log.jsonl"
    assert result.stderr == (
        f"error: --log must be a file that can be written; got {path}: No such file or directory. "
        "Name another file.\n"
    )


def test_a_log_whose_disk_is_full_is_warned_of_once_and_ends_no_build(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    sizes = ("--canvas-size=24", "--crop-size=16", "--glimpse-size=8", "--workers=1")
    warning = (
        "the log ends here: No space left on device at /dev/full; the work continues without a log"
    )
    build = ("--log", "/dev/full", "build-shards", image_tree, tmp_path / "out", *sizes)
    for reused in ([], ["reused 2 finished shards: train-000000.tar, val-000000.tar"]):
        result = srp_data(*build)
        assert result.exit_code == 0
        lines = [line for line in result.stderr.splitlines() if "━" not in line]
        assert lines == [warning, *reused]
    failed = srp_data("--log", "/dev/full", "verify", tmp_path / "none")
    assert failed.exit_code == 2
    assert failed.stderr.splitlines()[0] == warning
    assert failed.stderr.splitlines()[1].startswith("error: SHARDS must be a folder")


def test_a_log_that_breaks_off_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, warnings = tmp_path / "log.jsonl", list[str]()
    log = Log()
    log.open(path, warn=warnings.append)
    log.write("first")
    path.rename(tmp_path / "kept.jsonl")
    path.mkdir()
    log.write("second")
    path.rmdir()
    log.write("third")
    assert [line["event"] for line in lines_of(tmp_path / "kept.jsonl")] == ["first"]
    assert not path.exists()
    (warning,) = warnings
    assert warning.startswith(f"the log ends here: Is a directory at {path};")


def test_a_long_stage_is_told_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log = Log()
    log.stage("unheard", 0, 2)
    log.open(tmp_path / "log.jsonl", warn=pytest.fail)
    for second in range(31):
        now[0] = float(second)
        log.stage("work", second, 30)
        log.stage("work", second, 30)
    told = [line["done"] for line in lines_of(tmp_path / "log.jsonl")]
    assert told == [0, int(STAGE_S), 2 * int(STAGE_S), 30]


def test_a_stage_that_begins_again_is_told_again(tmp_path: Path) -> None:
    log = Log()
    log.open(tmp_path / "log.jsonl", warn=pytest.fail)
    for done in (0, 5, 30, 30, 10, 30, 0, 30):
        log.stage("train", done, 30)
    told = [line["done"] for line in lines_of(tmp_path / "log.jsonl")]
    assert told == [0, 30, 10, 30, 0, 30]


def test_a_stage_of_one_report_is_told_of_each_run(tmp_path: Path) -> None:
    log = Log()
    log.open(tmp_path / "log.jsonl", warn=pytest.fail)
    for _run in range(3):
        log.begin()
        log.stage("val", 20, 20)
        log.stage("val", 20, 20)
    assert [line["done"] for line in lines_of(tmp_path / "log.jsonl")] == [20, 20, 20]


def test_a_group_of_commands_keeps_the_log_of_the_program(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    sizes = ["--images", "4", "--rounds", "0"]
    result = srp_data("--log", str(path), "bench", "build", str(image_tree), *sizes)
    assert result.exit_code == 2
    start, end = lines_of(path)
    assert start["command"][1:] == ["--log", str(path), "bench", "build", str(image_tree), *sizes]
    assert f"error: {end['error']}\n" == result.stderr


def test_results_are_json_where_it_is_asked_for(
    shards: Path, image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    verified = json.loads(srp_data("verify", "--all", "--json", str(shards)).stdout)
    assert verified["folder"] == str(shards)
    assert verified["splits"]["train"]["samples"] == 18
    command = ["build-shards", image_tree, tmp_path / "out", "--canvas-size", 24, "--crop-size", 16]
    built = srp_data(*map(str, [*command, "--glimpse-size", 8, "--workers", 1, "--json"]))
    found = json.loads(built.stdout)
    assert found["folder"] == str(tmp_path / "out")
    assert found["splits"]["val"]["sources"] == 9
    assert found["splits"]["val"]["samples"] + len(found["rejects"]) >= 9
