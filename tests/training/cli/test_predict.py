import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from training.cli.train import main
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

Finished = tuple[RunPaths, RunRecord]
SrpTrain = Callable[..., Result]
DEVICE = ("--device", "cpu", "-j", "1")


@pytest.fixture
def predict(srp_train: SrpTrain, finished: Finished) -> SrpTrain:
    """Run `srp-train predict RUN` with these arguments."""

    def run(*arguments: object) -> Result:
        return srp_train("predict", finished[0].folder, *arguments, *DEVICE)

    return run


def error_of(result: Result, status: int) -> str:
    """Give the one error line that a command ended in."""
    assert result.exit_code == status, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error: ")


def test_a_folder_is_predicted_as_a_table(predict: SrpTrain, scenes: Path) -> None:
    folder = next((scenes / "val").iterdir())
    result = predict(folder)
    assert result.exit_code == 0
    num_images = len(list(folder.iterdir()))
    rows = result.stdout.splitlines()[2:]  # the head names crops on two lines
    assert len(rows) == num_images
    assert all(f"{folder}/" in row for row in rows)
    assert f"{num_images} images in" in result.stderr
    assert "% the proposer" in result.stderr


def test_files_patterns_and_a_list_name_the_same_images(
    predict: SrpTrain, finished: Finished, scenes: Path
) -> None:
    folder = next((scenes / "val").iterdir())
    files = sorted(folder.iterdir())
    by_files = predict(*files, "--json").stdout
    assert predict(folder, "--json").stdout == by_files
    assert predict(f"{folder}/*.JPEG", "--json").stdout == by_files
    listed = "".join(f"{file}\n" for file in files)
    words = ["predict", str(finished[0].folder), "-", "--json", *DEVICE]
    assert CliRunner().invoke(main, words, input=listed).stdout == by_files
    assert [json.loads(line)["filename"] for line in by_files.splitlines()] == list(map(str, files))


def test_csv_and_classes_are_chosen_by_timms_options(predict: SrpTrain, scenes: Path) -> None:
    file = next(scenes.glob("val/*/*.JPEG"))
    options = ("--topk", "2", "--label-type", "index", "--results-format", "csv")
    (row,) = csv.DictReader(io.StringIO(predict(file, *options).stdout))
    assert {row["label_0"], row["label_1"]} <= set(map(str, range(10)))
    assert float(row["prob_0"]) >= float(row["prob_1"])


def test_a_bad_image_is_named_and_skipped_and_the_status_is_four(
    predict: SrpTrain, scenes: Path, tmp_path: Path
) -> None:
    good = next(scenes.glob("val/*/*.JPEG"))
    (tmp_path / "notes.txt").write_text("not an image")
    result = predict(tmp_path / "notes.txt", good, "--json")
    assert error_of(result, 4).startswith("every image must be usable; got 1 of 2 that are not")
    assert f"skipped {tmp_path}/notes.txt: not an image of a known format" in result.stderr
    assert [json.loads(line)["filename"] for line in result.stdout.splitlines()] == [str(good)]


def test_pictures_are_saved_and_named_in_json(
    predict: SrpTrain, scenes: Path, tmp_path: Path
) -> None:
    files = sorted(scenes.glob("val/*/*.JPEG"))[:3]
    result = predict(*files, "--json", "--save-pictures", tmp_path / "new/pictures")
    names = [json.loads(line)["picture"] for line in result.stdout.splitlines()]
    assert names == [
        f"{tmp_path}/new/pictures/{number:06d}-{file.stem}.png" for number, file in enumerate(files)
    ]
    for name in names:
        with Image.open(name) as picture:
            assert picture.width == 640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.jpg",), "IMAGE must be a file, a folder or a pattern"),
        (("empty",), "a folder of images must hold some; got none in"),
        ((".", "--results-format", "xml"), "'xml' is not one of 'table', 'csv'"),
        ((".", "--json", "--results-format", "csv"), "results have one format; got --json and"),
        ((".", "--topk", "0"), "0 is not in the range x>=1"),
        ((".", "--label-type", "none"), "'none' is not one of 'description', 'name', 'index'"),
        ((".", "--save-pictures", "file"), "--save-pictures must be a folder that can be written"),
        ((), "Missing argument 'IMAGE...'"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: tuple[str, ...], message: str, predict: SrpTrain, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    result = predict(*arguments)
    assert message in error_of(result, 2)
    assert result.stdout == ""


def test_a_run_that_is_not_there_and_an_empty_list_are_one_line(
    srp_train: SrpTrain, predict: SrpTrain, scenes: Path
) -> None:
    missing = error_of(srp_train("predict", "no-run", scenes, *DEVICE), 2)
    assert missing.startswith("a run must have a checkpoint; got none at no-run")
    assert "got none on standard input" in error_of(predict("-"), 2)


@pytest.mark.sweep
def test_stdout_is_data_alone_also_where_stderr_is_a_terminal(
    finished: Finished, scenes: Path, tmp_path: Path
) -> None:
    folder = next((scenes / "val").iterdir())
    program = (
        "import os, pty, sys\n"
        "from training.cli.train import main\n"
        "parent, child = pty.openpty()\n"
        "os.dup2(child, 2)\n"
        "main(sys.argv[1:])\n"
    )
    words = ["predict", str(finished[0].folder), str(folder), "--json", *DEVICE]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, check=True, text=True
    )
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == len(
        list(folder.iterdir())
    )
