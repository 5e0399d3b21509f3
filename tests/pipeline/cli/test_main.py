import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.common import atomic_io
from pipeline.format.crops import CANDIDATE_SETS
from training.cli.train import main as training_main

REPO = Path(__file__).resolve().parents[3]
SIZES = ["--canvas-size=168", "--crop-size=112", "--glimpse-size=32", "--workers=1"]


def one_line_error(result: Any) -> str:
    """What a command ended in, without the progress before it."""
    assert result.exit_code != 0
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    return str(last)


def test_images_become_shards_that_verify_and_show(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    built = srp_data("build-shards", image_tree, out, *SIZES)
    assert built.exit_code == 0
    assert re.fullmatch(
        r"train: 18 images in, 18 samples out, 1 shards, \d MiB\n"
        r"val: 9 images in, 9 samples out, 1 shards, \d MiB\n",
        built.stdout,
    )
    assert "building shards" in built.stderr

    verified = srp_data("verify", out)
    assert verified.exit_code == 0
    assert verified.stdout == (
        "train: 18 samples of 18 images, 0 rejected, in 1 shards: ok\n"
        "val: 9 samples of 9 images, 0 rejected, in 1 shards: ok\n"
        f"total: 27 samples in {out}: ok\n"
    )

    shown = srp_data("show", out, "-o", tmp_path / "sheet.png", "--split", "val", "--rows", 2)
    assert shown.stdout == f"{tmp_path / 'sheet.png'}\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_a_second_run_says_what_it_reused(image_tree: Path, srp_data: Any, tmp_path: Path) -> None:
    first, second = (srp_data("build-shards", image_tree, tmp_path, *SIZES) for _ in range(2))
    assert first.stdout == second.stdout
    assert "reused 2 finished shards: train-000000.tar, val-000000.tar\n" in second.stderr
    assert "reused" not in first.stderr


def test_an_archive_is_read_with_progress_and_its_stray_file_is_named(
    image_archive: Path, srp_data: Any, tmp_path: Path
) -> None:
    result = srp_data("build-shards", image_archive, tmp_path / "out", *SIZES, "--limit=2")
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "\nskipped: 1 (not an image file in train/CLASS/ or val/CLASS/)\n"
        "skipped images/README.csv\n"
    )
    assert re.search(r"reading the archive .* [\d.]+/[\d.]+ .* MB/s", result.stderr)
    assert "train: 2 images in, 2 samples out" in result.stdout


def test_what_was_skipped_is_counted_and_the_first_of_it_named_in_text_and_all_in_json(
    own_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    names = [f"train/cat/{number:02d}.heic" for number in range(13)]
    for name in names:
        (own_tree / name).touch()
    command = ("build-shards", own_tree, tmp_path / "out", *SIZES)
    told = srp_data(*command).stdout.splitlines()
    assert told[2:] == [
        "skipped: 13 (not an image file in train/CLASS/ or val/CLASS/)",
        *(f"skipped {name}" for name in names[:10]),
        "and 3 more; --json names all",
    ]
    counts = json.loads(srp_data(*command, "--json").stdout)
    assert counts["skipped"] == names
    scattered = srp_data("scatter", own_tree, tmp_path / "scattered", "--size=32", "-j1").stdout
    assert scattered.splitlines()[1:] == [*told[2:-1], "and 3 more; build-shards --json names all"]


def test_rejects_end_in_status_4_and_are_tolerated_by_number(
    own_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    (own_tree / "train/cat/cat_000.JPEG").write_text("text")
    (own_tree / "val/dog/dog_001.JPEG").write_bytes(b"")
    command = ("build-shards", own_tree, tmp_path / "out", *SIZES)
    refused = srp_data(*command)
    assert refused.exit_code == 4
    assert "--max-rejects 0 images may be unusable; got 2, the first " in one_line_error(refused)
    lines = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in lines} == {
        "train/cat/cat_000.JPEG",
        "val/dog/dog_001.JPEG",
    }

    accepted = srp_data(*command, "--max-rejects=2")
    assert accepted.exit_code == 0
    assert "train: 18 images in, 17 samples out" in accepted.stdout
    assert "rejected val/dog/dog_001.JPEG: empty file\n" in accepted.stdout
    verified = srp_data("verify", tmp_path / "out")
    assert "val: 8 samples of 9 images, 1 rejected" in verified.stdout


def test_a_flipped_byte_ends_in_status_3_with_shard_and_offset(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    srp_data("build-shards", image_tree, tmp_path, *SIZES)
    with (tmp_path / "val-000000.tar").open("r+b") as file:
        file.seek(90_000)
        file.write(b"?!")
    result = srp_data("verify", tmp_path)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert re.search(r"val-000000\.tar at offset \d+ \(sample ", one_line_error(result))
    shown = srp_data("show", tmp_path, "-o", tmp_path / "s.png", "--split=val", "--rows=99")
    assert shown.exit_code == 3
    assert "val-000000.tar at offset" in one_line_error(shown)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none", "out"], "SOURCE must be a folder or a .tgz; got none, which does not exist."),
        (["{tree}", "out", "--crop-size=400"], "got --crop-size 400 px for --canvas-size 336 px."),
        (["{tree}", "out", "--glimpse-size=300"], "Lower --glimpse-size."),
        (["{tree}", "out", "--layout=zip"], "Invalid value for '--layout': 'zip' is not one of"),
        (["{tree}", "out", "--candidates=six"], "Invalid value for '--candidates': 'six' is not"),
        (["{tree}", "out", "--decoder=cv2"], "Invalid value for '--decoder': 'cv2' is not one"),
        (["{tree}", "out", "--device=gpu"], "--device gpu needs --decoder dali; got --decoder"),
        (["{tree}", "out", "--device=tpu"], "Invalid value for '--device': 'tpu' is not one of"),
        (["{tree}", "out", "--workers=0"], "--workers must be at least 1; got 0."),
        (["{tree}", "out", "--seed=x"], "Invalid value for '--seed': 'x' is not a valid integer."),
        (["{tree}", "out", "--size=3"], "No such option '--size'"),
        (["{tree}"], "Missing argument 'OUT'."),
        (["{tree}/train/cat", "out"], "got no class folder in train/ of "),
        (
            ["{tree}/train/cat/cat_000.JPEG", "out"],
            "an archive must be a complete .tgz; got ReadErr",
        ),
        (["{tree}", "{tree}/train/cat/cat_000.JPEG"], "OUT must be a folder that can be written"),
    ],
)
def test_bad_input_to_a_build_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    image_tree: Path,
    srp_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [argument.replace("{tree}", str(image_tree)) for argument in arguments]
    result = srp_data("build-shards", *filled)
    assert words in one_line_error(result)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "none"], "SHARDS must be a folder with a manifest.json; got none, which does"),
        (["show", "none", "-o", "s.png"], "Build shards with: srp-data build-shards SOURCE none"),
        (["show", "none"], "Missing option '-o' / '--output'."),
        (["show", "none", "-o", "s.png", "--rows=0"], "0 is not in the range 1<=x<=100."),
        (["sample", "out", "--size=8"], "--size must be at least 32; got 8."),
        (["download", "imagenet"], "imagenet"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["nonsense"], "No such command 'nonsense'."),
    ],
)
def test_bad_input_to_other_commands_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    srp_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = srp_data(*arguments)
    assert words in one_line_error(result)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_data_set_is_drawn_and_can_be_built(srp_data: Any, tmp_path: Path) -> None:
    options = ["--train=2", "--val=1", "--size=64"]
    drawn = srp_data("sample", tmp_path / "scenes", *options)
    assert drawn.exit_code == 0
    assert drawn.stdout == f"30 images in {tmp_path / 'scenes'}\n"
    assert "drawing scenes" in drawn.stderr
    built = srp_data("build-shards", tmp_path / "scenes", tmp_path / "out", *SIZES)
    assert built.stdout.endswith("\nskipped boxes.csv\n")
    assert "train: 20 images in, 20 samples out" in built.stdout


PLACES = {
    "file/below": "Not a directory",
    "folder": "Is a directory",
    "none/sheet.png": "No such file or directory",
    "n" * 300: "File name too long",
    "refused": "Permission denied",
}


@pytest.mark.parametrize(
    ("command", "option", "place"),
    [
        ("build-shards TREE", "OUT", "file/below"),
        ("build-shards TREE", "OUT", "n" * 300),
        ("sample", "OUT", "file/below"),
        ("scatter TREE", "OUT", "file/below"),
        ("download imagenette2-160 -o", "-o/--output", "file/below"),
        ("download imagenette2-160 -o", "-o/--output", "refused"),
        *[("show SHARDS -o", "-o/--output", place) for place in PLACES],
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work_with_its_option_and_status_2(
    command: str, option: str, place: str, image_tree: Path, canvas_shards: Path, srp_data: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    if place == "refused":  # root may write anywhere
        monkeypatch.setattr(atomic_io, "TemporaryFile", refuse_to_write)
    places = {"TREE": image_tree, "SHARDS": canvas_shards}
    words = [places.get(word, word) for word in command.split()]
    result = srp_data(*words, tmp_path / place)
    kind = "folder" if option == "OUT" or "download" in command else "file"
    assert one_line_error(result) == (
        f"error: {option} must be a {kind} that can be written; got {tmp_path / place}: "
        f"{PLACES[place]}. "
        f"Name another {kind}."
    )
    assert result.exit_code == 2
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "refused"] == before


def refuse_to_write(**_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("command", ["show SHARDS -o", "sample --train 1 --val 1 --size 32"])
def test_a_disk_that_fails_while_it_is_written_ends_in_status_1(
    command: str, canvas_shards: Path, srp_data: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    words = [canvas_shards if word == "SHARDS" else word for word in command.split()]
    result = srp_data(*words, tmp_path / "out")
    assert ": No space left on device" in one_line_error(result)
    assert result.exit_code == 1


def test_every_command_has_a_summary_that_fits_its_line(srp_data: Any) -> None:
    listing = srp_data("--help").stdout
    for name, command in main.commands.items():
        assert command.help
        assert f"{name} " in listing
        assert srp_data(name, "--help").exit_code == 0
    assert "..." not in listing.replace("[ARGS]...", "")


@pytest.mark.parametrize(
    "command",
    ["build-shards"]
    + [f"srp-train {name}" for name in ("from", "distill", "headroom", "evaluate")],
)
def test_the_help_of_candidates_lists_every_set_and_says_what_it_is(command: str) -> None:
    program, _, name = command.rpartition(" ")
    shown = CliRunner().invoke(training_main if program else main, [name, "--help"]).output
    (text,) = re.findall(r"--candidates \S+\s+(.*?)\[default", shown, re.DOTALL)
    told = " ".join(text.split())
    for candidates in CANDIDATE_SETS:
        assert re.search(rf"(^|\s){re.escape(candidates)}( \(\w|,|\.)", told), candidates
    assert "the four corners and the centre" in told


def run_python(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout


def test_help_loads_nothing_heavy() -> None:
    heavy = ("numpy", "PIL", "rich", "torch", "torchvision", "timm", "webdataset", "training")
    loaded = run_python("import sys, pipeline.cli.main; print(*sys.modules)").split()
    assert not set(heavy) & set(loaded)


def test_the_pipeline_never_loads_torch() -> None:
    names = {path.stem for path in (REPO / "pipeline").glob("[!_]*.py")}
    modules = sorted(names - {"dali", "predecessor"})  # for what may not be installed
    code = "".join(f"import pipeline.{module}\n" for module in modules)
    loaded = run_python(f"{code}import sys; print(*sys.modules)").split()
    assert {f"pipeline.{module}" for module in modules} <= set(loaded)
    assert not {"torch", "torchvision", "timm", "training"} & set(loaded)


def test_a_command_works_as_a_module_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pipeline.cli.main", "verify", "no/such/folder"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: SHARDS must be a folder with a manifest.json; got no/")
    assert result.stderr.count("\n") == 1
