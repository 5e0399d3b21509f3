"""Commands of the trainer whose shards lie at an address."""

import json
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from served import Web, remove_backends, web_server

from training.cli.train import main
from training.saved.record import load_record

SrpTrain = Callable[..., Result]
QUICK = ("--model", "test_resnet", "--epochs", "2", "-b", "16", "--no-amp", "--device", "cpu")
CPU = ("-j", "1", "--device", "cpu")


@pytest.fixture
def web(several_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Shards on a web server, and a cache folder of the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with web_server(several_shards, monkeypatch) as served:
        yield served


def one_line(result: Result, status: int = 2) -> str:
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.sweep  # every command that judges
def test_a_run_from_an_address_is_judged_again_by_every_command(
    web: Web, srp_train: SrpTrain, tmp_path: Path
) -> None:
    runs, cache = tmp_path / "runs", tmp_path / "own cache"
    options = ("--cache", cache, "--cache-mib", 4, "--output", runs, "--fit-epochs", 2)
    trained = srp_train("from", web.address, *options, *QUICK, "-j", 1)
    assert trained.exit_code == 0, trained.output
    run = runs / "distilled-s42"
    record = load_record(run / "record.json")
    assert (record.shards, record.window_mib) == (web.address, 2.0)
    assert not (tmp_path / "home/srp").exists()
    scored = srp_train("evaluate", run, "--json", *CPU)
    assert json.loads(scored.stdout)["top1"] == record.evaluation.top1  # type: ignore[union-attr]
    audited = srp_train("audit", run, *CPU)
    assert audited.exit_code == 0, audited.output
    command = shlex.split(audited.stderr.strip().rpartition("audit again: ")[2])
    assert command[1:3] == ["from", web.address]
    made = main.commands["from"].make_context("from", command[2:]).params
    assert (made["shards"], made["cache"], made["cache_mib"]) == (web.address, cache, 4)
    made = srp_train("distill", run, "--epochs", 2, "--output", runs, "--experiment", "d", *CPU)
    assert made.exit_code == 0, made.output
    assert load_record(runs / "d/record.json").cache == record.cache
    assert not (tmp_path / "home/srp").exists()  # all that was the run's own cache
    told = srp_train("report", runs, "--shards", web.address)
    assert told.exit_code == 0, told.output
    assert list((tmp_path / "home/srp/shards").glob("*.tar"))
    other = srp_train("evaluate", run, "--shards", f"{web.address}/", "--json", *CPU)
    assert json.loads(other.stdout)["top1"] == json.loads(scored.stdout)["top1"]


def test_the_headroom_of_shards_at_an_address_is_that_of_the_folder(
    web: Web, several_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    found = [
        srp_train("headroom", place, "--output", tmp_path / str(number), "--epochs", 1, "-b", 16,
                  "--json", *CPU)
        for number, place in enumerate((web.address, several_shards))
    ]  # fmt: skip
    assert [result.exit_code for result in found] == [0, 0], found[0].output
    fields = [json.loads(result.stdout) for result in found]
    for each in fields:
        each.pop("seconds", None)
    assert fields[0] == fields[1]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("{web}/none", "shards must have a manifest.json; got none at {web}/none. Name the folder"),
        ("ftp://host/a", "shards must be in a folder, or at an address of file, http, https, s3, "
         "gs or hf; got the scheme ftp: in 'ftp://host/a'. Name"),
        ("pipe:cat a", "shards must be in a folder, or at an address of file, http, https, s3, "),
        ("http://127.0.0.1:{port}/a", "shards must be reachable; got ClientConnectorError: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["from", "study", "headroom"])
def test_an_address_that_cannot_work_is_one_line_before_anything_is_made(
    command: str, place: str, told: str, web: Web, srp_train: SrpTrain, tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        names = {"web": web.address, "port": unused.getsockname()[1]}
        result = srp_train(command, place.format(**names), "--output", tmp_path / "runs")
    assert one_line(result).startswith(told.format(**names))
    assert not (tmp_path / "runs").exists()


def test_a_missing_backend_is_named_with_its_command(
    srp_train: SrpTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_backends(monkeypatch)
    line = one_line(srp_train("from", "s3://bucket/a", "--output", tmp_path))
    assert line.startswith("an address of s3 needs packages that are not installed; got ")
    assert line.endswith(" Install them with: pip install 'srp[remote]'")


def test_a_cache_that_is_too_small_or_of_no_use_is_one_line(
    web: Web, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    assert one_line(srp_train("from", web.address, "--cache-mib", 1, "--output", tmp_path)) == (
        "a cache must have room for two shards; got --cache-mib 1 for shards of up to 0.9 MiB at "
        f"{web.address}. Raise it to 2 or more, or leave it out."
    )
    assert not list(tmp_path.iterdir())
    for option, value in (("--cache", tmp_path), ("--cache-mib", 5)):
        line = one_line(srp_train("from", scene_shards, option, value, "--output", tmp_path))
        assert line == (
            f"a cache needs shards at an address; got {option} {value} for the folder "
            f"{scene_shards}. Drop {option}: shards of a folder are read where they lie."
        )
    (tmp_path / "file").touch()
    line = one_line(srp_train("from", web.address, "--cache", tmp_path / "file"))
    assert line.startswith(f"the cache must be a folder; got the file {tmp_path / 'file'}.")


def test_a_file_address_is_the_folder(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    address = f"file://{scene_shards}"
    result = srp_train("from", address, "--output", tmp_path, *QUICK, "--policy", "centre")
    assert result.exit_code == 0, result.output
    record = load_record(tmp_path / "centre-s42/record.json")
    assert (record.shards, record.cache) == (str(scene_shards), None)
    assert srp_train("evaluate", tmp_path / "centre-s42", *CPU).exit_code == 0


def test_a_path_with_a_colon_can_be_trained_on_and_found_again(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my:shards").symlink_to(scene_shards)
    options = ("--output", tmp_path, *QUICK, "--policy", "centre")
    assert "a path with a colon needs ./ before it" in one_line(
        srp_train("from", "my:shards", *options)
    )
    assert srp_train("from", "./my:shards", *options).exit_code == 0
    assert load_record(tmp_path / "centre-s42/record.json").shards == "./my:shards"
    assert srp_train("evaluate", tmp_path / "centre-s42", *CPU).exit_code == 0


def test_a_run_whose_server_is_gone_is_scored_in_one_line(
    web: Web, srp_train: SrpTrain, tmp_path: Path
) -> None:
    options = ("--output", tmp_path, *QUICK, "--policy", "centre")
    assert srp_train("from", web.address, *options).exit_code == 0
    web.is_gone = True
    line = one_line(srp_train("evaluate", tmp_path / "centre-s42", *CPU))
    assert line.startswith("shards must be reachable; got ")
    assert f" from {web.address}/manifest.json at offset 0. Check the address" in line
