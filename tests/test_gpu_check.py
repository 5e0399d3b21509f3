"""What a machine with a GPU is brought: the pieces that are made are the pieces that are joined."""

import hashlib
import json
import subprocess
from pathlib import Path

import gpu_check
import gpu_folder
import pytest

from pipeline.cli.main import main as srp_data
from training.cli.train import main as srp_train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts in pieces of 4 KiB, as make gpu-folder writes them."""
    made = tmp_path / "gpu"
    made.mkdir()
    sums = {}
    for name, text in (("base", "a" * 9000), ("images", "b")):
        part = tmp_path / name
        part.mkdir()
        (part / f"{name}.txt").write_text(text, encoding="utf-8")
        sums[name] = gpu_folder.cut(part, made, 4096)
    (made / gpu_check.PIECES).write_text(json.dumps(sums), encoding="utf-8")
    return made


def test_pieces_are_joined_to_what_was_cut(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert len(list(folder.glob("base-*"))) > 2
    gpu_check.unpack(folder, out)
    assert (out / "base/base.txt").read_text(encoding="utf-8") == "a" * 9000
    assert (out / "images/images.txt").read_text(encoding="utf-8") == "b"


def test_a_part_that_was_not_carried_is_named_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.glob("base-*"):
        path.unlink()
    gpu_check.unpack(folder, tmp_path)
    assert capsys.readouterr().out == "== base: not carried\n"
    assert (tmp_path / "images/images.txt").exists()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"else")])
def test_a_piece_that_is_missing_or_changed_is_an_error_with_the_fix(
    folder: Path, tmp_path: Path, harm: object
) -> None:
    harmed = folder / "base-01"
    harm(harmed)  # type: ignore[operator]
    with pytest.raises(SystemExit) as caught:
        gpu_check.unpack(folder, tmp_path)
    assert str(caught.value) == (
        f"error: {harmed} must be what make gpu-folder made. Copy it again."
    )


def test_a_part_without_its_packages_is_left_out_and_a_failure_does_not_end_the_check(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check = gpu_check.Check(tmp_path, minutes=1)
    check.part(
        "first", gpu_check.PYTHON, "-c", "print(1)", needs=("json", "no_such_package", "no.such")
    )
    check.part("second", gpu_check.PYTHON, "-c", "raise SystemExit(3)")
    check.part("third", gpu_check.PYTHON, "-c", "print('it ran')", needs=("json",))
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["== first: left out for want of no_such_package, no.such", "== second"]
    assert lines[2].endswith("s, FAILED with exit status 3")
    assert lines[3:5] == ["== third", "it ran"]
    assert check.failed == ["second"]


def test_the_commands_of_its_trainings_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def took(_check: gpu_check.Check, _name: str, *command: str | Path) -> float:
        asked.append(tuple(map(str, command)))
        return 1e9  # so that no second seed fits

    monkeypatch.setattr(gpu_check.Check, "part", took)
    gpu_check.Check(tmp_path, minutes=1).trainings(tmp_path)
    commands = [words[len(gpu_check.TRAIN) :] for words in asked if "from" in words]
    assert len(commands) == len(gpu_check.CANVASES) * len(gpu_check.KINDS)
    for name, *words in commands:
        context = srp_train.commands[name].make_context(name, words)
        assert context.params["epochs"] == gpu_check.EPOCHS


def test_digests_are_of_the_pieces(folder: Path) -> None:
    sums = json.loads((folder / gpu_check.PIECES).read_text(encoding="utf-8"))
    for digests in sums.values():
        for piece, digest in digests.items():
            assert hashlib.sha256((folder / piece).read_bytes()).hexdigest() == digest


def test_the_commands_of_a_speedrun_parse(tmp_path: Path) -> None:
    variables = ("READY=", "SRP_DATA=echo", "SRP_TRAIN=echo", "DATA=images.tgz", f"WORK={tmp_path}")
    command = ["make", "--silent", "speedrun", *variables]
    printed = subprocess.check_output(command, cwd=gpu_check.REPO, text=True).splitlines()
    for program, line in zip((srp_data, srp_train), printed, strict=True):
        name, *words = line.split()
        program.commands[name].make_context(name, words)


@pytest.mark.sweep
def test_the_tests_for_a_gpu_are_all_found_and_no_others() -> None:
    command = [gpu_check.PYTHON, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "tests"]
    listed = subprocess.check_output(command, cwd=gpu_check.REPO, text=True).splitlines()
    expected = {line.partition("::")[0] for line in listed if "::" in line}
    assert {str(path.relative_to(gpu_check.REPO)) for path in gpu_check.gpu_tests()} == expected
