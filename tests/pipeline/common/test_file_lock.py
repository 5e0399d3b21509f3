"""Fault: two builders in one folder."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import ConfigError
from pipeline.common.file_lock import writer_lock

REPO = Path(__file__).resolve().parents[3]
SIZES = ("--canvas-size=336", "--crop-size=224", "--glimpse-size=32", "--layout=tensors")
HERE = socket.gethostname()
RULE = {"rule": "only one build at a time may write OUT", "fix": "Wait for it to end."}


def test_of_two_builds_of_one_folder_the_second_says_who_holds_it_and_harms_nothing(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["build-shards", image_tree, out, *SIZES, "--shard-mib=1"]
    first = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with first:
        while not (list(out.glob(".train-*.partial")) or first.poll() is not None):
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        second = srp_data(*arguments)
        assert first.poll() is None, "the first was over before the second came"
        first.send_signal(signal.SIGCONT)
        output, errors = first.communicate()
    assert second.exit_code == 2
    line = second.stderr.splitlines()[-1]
    who = f"process {first.pid} on {HERE} has been writing since 20"
    assert line.startswith(f"error: only one build at a time may write OUT; got {out}, which {who}")
    assert line.endswith(". Wait for it to end, or choose another folder.")
    assert first.returncode == 0, errors
    assert "train: 18 images in, 18 samples out" in output
    assert not (out / ".build").exists()
    assert srp_data("verify", out).exit_code == 0


@pytest.mark.quick("sample")
@pytest.mark.parametrize("command", ["sample", "scatter"])
def test_of_two_commands_that_draw_into_one_folder_the_second_says_who_holds_it(
    command: str, image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = [image_tree, "-j1"] if command == "scatter" else ["--train=9", "--val=1"]
    size = f"--size={2000 if command == 'scatter' else 160}"  # large enough to be caught at it
    arguments = [command, *source, out, size, "--seed=1"]
    first = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with first:
        while not (list(tmp_path.rglob("*.JPEG")) or first.poll() is not None):
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        second = srp_data(*arguments[:-1], "--seed=2")
        build = srp_data("build-shards", image_tree, out, *SIZES)
        assert first.poll() is None, "the first was over before the second came"
        first.send_signal(signal.SIGCONT)
        output, errors = first.communicate()
    who = f"process {first.pid} on {HERE} has been writing since 20"
    for refused in (second, build):
        assert refused.exit_code == 2
        line = refused.stderr.splitlines()[-1]
        assert line.startswith(
            f"error: only one build at a time may write OUT; got {out}, which {who}"
        )
    assert first.returncode == 0, errors
    listed = (out / "boxes.csv").read_text().splitlines()[1:]
    assert output == f"{len(listed)} images in {out}\n"
    drawn = {path.relative_to(out).as_posix() for path in out.rglob("*.JPEG")}
    assert {line.partition(",")[0] for line in listed} == drawn
    assert not (out / ".build").exists()
    alone = tmp_path / "alone"
    srp_data(command, *source, alone, size, "--seed=1")
    assert files(out) == files(alone)


def test_a_folder_that_a_build_has_begun_is_not_drawn_into(srp_data: Any, tmp_path: Path) -> None:
    (tmp_path / "out/.build/fingerprint").mkdir(parents=True)
    refused = srp_data("sample", tmp_path / "out", "--train=1", "--val=1", "--size=32")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: OUT must be absent or an empty folder; got ")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", ".build", "fingerprint"]


def test_a_lock_whose_holder_has_not_said_who_it_is_counts_as_well(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with (
            pytest.raises(
                ConfigError, match=r"one build at a time may write OUT; got .*, which another is"
            ),
            writer_lock(tmp_path, tmp_path / "holder.json", **RULE),
        ):
            pass
    finally:
        os.close(descriptor)


def test_what_a_killed_holder_left_says_nothing(tmp_path: Path) -> None:
    note = tmp_path / "holder.json"
    note.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "long ago"}))
    with writer_lock(tmp_path, note, **RULE):
        assert json.loads(note.read_text())["pid"] == os.getpid()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, such as some network file systems."""

    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave(out: Path, note: bytes) -> dict[str, bytes]:
    """Lay out a build that is under way; return its files."""
    (out / ".build").mkdir(parents=True)
    (out / ".build/holder.json").write_bytes(note)
    (out / ".train-000000.tar.1.partial").write_bytes(b"under way")
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def note_of(pid: int, host: str) -> bytes:
    return json.dumps({"pid": pid, "host": host, "since": "2026-01-02 03:04:05 UTC"}).encode()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("whose", ["alive", "elsewhere", "unknown"])
def test_without_locks_the_files_of_a_build_that_may_be_alive_are_left_alone(
    whose: str, image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    notes = {"alive": (os.getppid(), HERE), "elsewhere": (4_000_000, "elsewhere")}
    out = tmp_path / "out"
    before = leave(out, note_of(*notes[whose]) if whose in notes else b"")
    result = srp_data("build-shards", image_tree, out, *SIZES)
    assert result.exit_code == 2
    pid, host = notes.get(whose, (0, ""))
    who = f"process {pid} on {host} has been writing since 2026-01-02 03:04:05 UTC"
    assert result.stderr.splitlines()[-1] == (
        f"error: only one build at a time may write OUT; got {out}, which "
        f"{who if pid else 'another is writing'}, on a file system without locks. "
        f"Wait for it to end, or delete {out}/.build/holder.json if it has been killed."
    )
    assert files(out) == before


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_build_that_was_killed_on_this_machine_is_gone_on_with(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    out = tmp_path / "out"
    leave(out, note_of(gone.pid, HERE))
    make_shards(image_tree, out)
    assert not list(out.glob(".*"))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_note_keeps_others_out_while_a_build_lasts(tmp_path: Path) -> None:
    note = tmp_path / "holder.json"
    with (
        writer_lock(tmp_path, note, **RULE),
        pytest.raises(ConfigError, match=rf"process {os.getpid()} on {HERE} .*without locks"),
        writer_lock(tmp_path, note, **RULE),
    ):
        pass
