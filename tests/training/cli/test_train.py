import dataclasses
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from pipeline import ShardFolder
from pipeline.common import atomic_io
from training.cli.train import from_shards, main
from training.config import TrainConfig
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record

REPO = Path(__file__).resolve().parents[3]
SrpTrain = Callable[..., Result]
QUICK = ("--model", "test_resnet", "--epochs", "1", "-b", "16", "--no-amp", "--device", "cpu")
NOT_CONFIG = {
    "shards", "config", "cache", "cache_mib", "output", "experiment", "resume", "dry_run",
    "as_json",
}  # fmt: skip


def one_line(result: Result, status: int = 2) -> str:
    """Give the one line that a command ended in."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error: ")


def test_help_imports_no_torch() -> None:
    script = (
        "import sys; from training.cli.train import main; main(['--help'], standalone_mode=False); "
        "main(['from', '--help'], standalone_mode=False); "
        "print('HEAVY', [name for name in ('torch', 'timm', 'numpy', 'PIL', 'matplotlib') "
        "if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_options_and_fields_of_the_config_are_the_same_with_the_same_defaults() -> None:
    options = {option.name: option for option in from_shards.params}
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    assert options.keys() - NOT_CONFIG == fields.keys()
    for name, field in fields.items():
        option = options[name]
        assert isinstance(option, click.Option)
        assert option.default == field.default, name
        assert f"--{name.replace('_', '-')}" in option.opts
        assert option.help, name


def test_without_options_the_defaults_reach_the_config() -> None:
    context = from_shards.make_context("from", ["shards"])
    typed = {name: value for name, value in context.params.items() if name not in NOT_CONFIG}
    assert TrainConfig(**typed) == TrainConfig()


def test_numbers_joined_by_commas_become_tuples() -> None:
    words = ["shards", "--proposer-channels", "4,8", "--mean", "0,0.5,1"]
    context = from_shards.make_context("from", words)
    assert context.params["proposer_channels"] == (4, 8)
    assert context.params["mean"] == (0.0, 0.5, 1.0)


def test_an_option_that_is_repeated_is_read_again_with_the_run(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    words = ("--model-kwargs", "aa_layer=blurpool", "--model-kwargs", "drop_rate=0.1")
    command = ("from", scene_shards, "--output", tmp_path, *QUICK, "--policy", "whole", *words)
    trained = srp_train(*command, "--json")
    assert trained.exit_code == 0, trained.output
    config = load_record(tmp_path / "whole-s42/record.json").config
    assert config.model_kwargs == ("aa_layer=blurpool", "drop_rate=0.1")
    again = srp_train("evaluate", tmp_path / "whole-s42", "--json", "--device", "cpu")
    first, second = (json.loads(result.stdout) for result in (trained, again))
    for figure in ("top1", "confusion", "classifier_macs"):
        assert first[figure] == second[figure]


def test_every_command_has_a_summary_that_fits_its_line(srp_train: SrpTrain) -> None:
    listing = srp_train("--help").stdout
    assert all(f"  {name} " in listing for name in main.commands)
    assert "..." not in listing.replace("[ARGS]...", "")


def test_every_option_of_every_command_has_a_help_text() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (name, option.name)


def test_training_prints_its_figures_and_leaves_its_files(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    result = srp_train("from", scene_shards, "--output", tmp_path, *QUICK, "--policy", "centre")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "centre-s42"
    assert {path.name.partition(".out.")[0] for path in folder.iterdir()} == {
        "record.json", "run.toml", "last.safetensors", "best.safetensors", "logits.safetensors",
        "events",
    }  # fmt: skip
    assert f"run: {folder}\n" in result.stdout
    for words in (
        "top-1 of 29 images",
        "always centre",
        "any crop right",
        "million MACs",
        "top-1 by class",
    ):
        assert words in result.stdout
    assert "epoch 1/1: loss " in result.stderr

    again = srp_train("from", scene_shards, "--output", tmp_path, *QUICK, "--policy", "centre")
    assert one_line(again).startswith(f"a run must not be overwritten; got one in {folder}")


def test_the_options_of_a_run_train_it_again_and_what_is_typed_takes_precedence(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    words = ("from", scene_shards, "--output", tmp_path)
    first = srp_train(*words, *QUICK, "--policy", "centre", "--lr", "0.03", "--experiment", "one")
    assert first.exit_code == 0, first.output
    path = RunPaths(folder=tmp_path / "one").options
    again = srp_train(*words, "-c", path, "--experiment", "two")
    assert again.exit_code == 0, again.output
    other = srp_train(*words, "-c", path, "--experiment", "three", "--seed", 1)
    assert other.exit_code == 0, other.output
    one, two, three = (
        load_record(tmp_path / name / "record.json") for name in ("one", "two", "three")
    )
    assert (two.config, two.evaluation) == (one.config, one.evaluation)
    assert three.config == dataclasses.replace(one.config, seed=1)
    path.write_text("momentum = 0.5\n")
    refused = one_line(srp_train(*words, "-c", path))
    assert refused.startswith("--momentum needs --sched cosine or step; got --sched onecycle.")
    assert refused.endswith(f" --momentum is from momentum in {path}.")


def test_the_only_folder_of_shards_below_is_the_one_that_is_meant(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    shutil.copytree(scene_shards, tmp_path / "shards" / "scenes")
    (tmp_path / "shards" / "README.md").touch()
    command = ("from", tmp_path / "shards", "--output", tmp_path / "runs", *QUICK)
    result = srp_train(*command, "--policy", "whole", "--experiment", "one")
    assert result.exit_code == 0, result.output
    record = load_record(tmp_path / "runs" / "one" / "record.json")
    assert record.shards == str(tmp_path / "shards" / "scenes")


def test_several_folders_of_shards_are_listed(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(scene_shards / "manifest.json", tmp_path / name)
    assert one_line(srp_train("from", tmp_path)) == (
        f"SHARDS must mean one folder of shards; got {tmp_path}, which holds 2: "
        f"{tmp_path / 'a'}, {tmp_path / 'b'}. Name one of them."
    )


@pytest.mark.parametrize("command", ["from", "study"])
def test_a_missing_folder_says_how_to_build_shards(
    command: str, srp_train: SrpTrain, tmp_path: Path
) -> None:
    missing = tmp_path / "nothing"
    assert one_line(srp_train(command, missing)) == (
        f"SHARDS must be a folder with a manifest.json; got {missing}, which does not exist. "
        f"Build shards with: srp-data build-shards SOURCE {missing}"
    )


@pytest.mark.parametrize(
    ("options", "known"),
    [
        (("--policy", "whole", "--tau-end", "0.5"), "blend or straight-through"),  # the default
        (("--policy", "expected", "--tau-start", "2"), "blend or straight-through"),
        (
            ("--policy", "mean", "--no-pad-glimpses"),
            "blend, straight-through, expected or distilled",
        ),
        (("--policy", "random", "--fit-epochs", "60"), "distilled"),
        (("--num-draws", "0"), "expected"),
    ],
)
def test_an_option_that_is_typed_and_would_be_ignored_is_refused(
    options: tuple[str, ...], known: str, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    option = next(word for word in reversed(options) if word.startswith("--"))
    option = option.replace("--no-", "--")
    policy = options[1] if options[0] == "--policy" else TrainConfig.policy
    assert one_line(srp_train("from", scene_shards, "--output", tmp_path, *options)) == (
        f"{option} needs --policy {known}; got --policy {policy}. Drop {option}, or change "
        "--policy."
    )
    assert not list(tmp_path.iterdir())


PAGES = ("README.md", "training/README.md", "training/results/README.md", "training/study/arms.py")
COMMAND = re.compile(r"^(srp-train (?:from|study|headroom) [^#\n]+)|`(srp-train from [^`]+)`", re.M)


def told_commands() -> list[tuple[str, ...]]:
    """List the commands that the pages tell people to type, placeholders filled in."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES:
        text = (REPO / page).read_text().replace("\\\n", " ")
        for line, inline in COMMAND.findall(text):
            words = shlex.split(line or inline)[1:]
            found[tuple("16" if word in ("S", "SIDE") else word for word in words)] = None
    return list(found)


@pytest.mark.parametrize("words", told_commands(), ids=" ".join)
def test_a_command_that_is_told_has_options_that_work_together(
    words: tuple[str, ...], srp_train: SrpTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "-c" in words:
        path = tmp_path / words[words.index("-c") + 1]
        path.parent.mkdir(parents=True)
        path.touch()
    assert one_line(srp_train(*words)).startswith("SHARDS must be a folder with a manifest.json; ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "resnet19"), "--model must be a name that timm knows; got 'resnet19'. "),
        (("--opt", "sgdd"), "--opt must be a name that timm knows; got 'sgdd'. "),
        (
            ("--glimpse-size", "64"),
            "glimpse size must fit the crop; got --glimpse-size 64 px for crops of 32 px in ",
        ),
        (
            ("--batch-size", "100"),
            "--policy distilled trains on half of the images at a time, which ",
        ),
        (
            ("--policy", "whole", "--candidates", "full", "--batch-size", "100"),
            "a step must not need more images than there are; got ",
        ),
        (("--candidates", "middle"), "--candidates must be in the shards; got 'middle', "),
        (("--lr", "-1"), "--lr must be at least 0; got -1.0."),
        (("--policy", "best"), "Invalid value for '--policy': 'best' is not one of "),
        (("--mean", "1,2"), "Invalid value for '--mean': '1,2' is not 3 numbers joined by commas."),
        (("--mean", "a,b,c"), "Invalid value for '--mean': 'a,b,c' is not 3 numbers joined by "),
        (("--epochs", "many"), "Invalid value for '--epochs': 'many' is not a valid integer."),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_option(
    options: tuple[str, ...],
    message: str,
    scene_shards: Path,
    srp_train: SrpTrain,
    tmp_path: Path,
) -> None:
    quick = (*QUICK, "--epochs", 2)
    command = ("from", scene_shards, "--output", tmp_path / "runs", *quick, *options)
    assert one_line(srp_train(*command)).startswith(message)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("from", ("--seed", 10**30), f"--seed must be at most {2**32 - 1}; got {10**30}."),
        ("from", ("--lr", "inf"), "--lr must be at most 1000; got inf."),
        ("from", ("--mean", "nan,0,0"), "--mean must be at least 0; got nan."),
        ("from", ("--std", "1,1,0"), "--std must be at least 0.001; got 0.0."),
        ("from", ("--workers", 10**9), "--workers must be at most 1024; got 1000000000."),
        ("distill", ("--seed", 10**30), f"--seed must be at most {2**32 - 1}; got {10**30}."),
        ("distill", ("--proposer-lr", "inf"), "--proposer-lr must be at most 1000; got inf."),
        ("distill", ("--vflip", "nan"), "--vflip must be at least 0; got nan."),
        ("distill", ("--epochs", 10**18), f"--epochs must be at most 1000000; got {10**18}."),
        ("distill", ("-j", 10**9), "--workers must be at most 1024; got 1000000000."),
        ("study", ("--seeds", f"0,{10**30}"), f"--seeds must be at most {2**32 - 1}; got {10**30}"),
        ("study", ("--seeds", "-1"), "--seeds must be at least 0; got -1."),
        ("study", ("--epochs", 10**18), f"--epochs must be at most 1000000; got {10**18}."),
        ("study", ("-j", 10**9), "--workers must be at most 1024; got 1000000000."),
        ("evaluate", ("-j", 10**9), "--workers must be at most 1024; got 1000000000."),
        ("evaluate", ("--price", "nan"), "--price must be at least 0; got nan."),
        ("audit", ("-j", 10**9), "--workers must be at most 1024; got 1000000000."),
        ("headroom", ("--seed", 10**30), f"--seed must be at most {2**32 - 2}; got {10**30}."),
        ("headroom", ("--limit", 10**30), f"--limit must be at most 1000000000; got {10**30}."),
        ("headroom", ("--lr", "inf"), "--lr must be at most 1000; got inf."),
        ("headroom", ("--epochs", 10**18), f"--epochs must be at most 1000000; got {10**18}."),
        ("headroom", ("-j", 10**9), "--workers must be at most 1024; got 1000000000."),
    ],
)
def test_a_number_far_beyond_what_can_work_is_refused_by_every_command(
    command: str, options: tuple[object, ...], message: str, scene_shards: Path,
    finished: tuple[RunPaths, RunRecord], srp_train: SrpTrain, tmp_path: Path,
) -> None:  # fmt: skip
    reads_run = command in ("distill", "evaluate", "audit")
    output = () if command == "evaluate" else ("--output", tmp_path / "out")
    named = finished[0].folder if reads_run else scene_shards
    assert one_line(srp_train(command, named, *output, *options)).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a\nb",
            "must hold printable characters alone; got 'a\\nb'. Leave out line breaks and the ",
        ),
        ("a\x1b[31m", "must hold printable characters alone; got 'a\\x1b[31m'. "),
        ("\0", "must hold printable characters alone; got '\\x00'. "),
        ("\udcff", "must hold printable characters alone; got '\\udcff'. "),
        ("\n" * 300, "must hold printable characters alone; got '"),
        (
            "n" * 300,
            f"must have at most 255 bytes, as names of folders must; got 300 in {'n' * 50}.",
        ),
        ("é" * 128, "must have at most 255 bytes, as names of folders must; got 256 in é"),
        (
            "a/b",
            "must be the name of one folder; got 'a/b'. Name the folder above it with --output.",
        ),
        ("..", "must be the name of one folder; got '..'. "),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("command", ["from", "distill"])
def test_a_name_that_no_folder_should_have_is_refused_before_the_start(
    command: str, name: str, message: str, scene_shards: Path,
    finished: tuple[RunPaths, RunRecord], srp_train: SrpTrain, tmp_path: Path,
) -> None:  # fmt: skip
    given = scene_shards if command == "from" else finished[0].folder
    result = srp_train(command, given, "--output", tmp_path, "--experiment", name)
    line = one_line(result)
    assert line.startswith(f"--experiment {message}")
    assert len(line) < 400
    assert not list(tmp_path.iterdir())


def test_the_longest_name_that_a_folder_can_have_is_taken(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    name = f".{'n' * 254}"
    command = ("from", scene_shards, "--output", tmp_path, *QUICK, "--policy", "centre")
    assert srp_train(*command, "--experiment", name).exit_code == 0
    assert [folder.name for folder in tmp_path.iterdir()] == [name]


def test_whole_needs_shards_with_the_whole_image(
    five_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    result = srp_train("from", five_shards, "--output", tmp_path, *QUICK, "--policy", "whole")
    assert one_line(result).startswith("--policy whole needs the crop 'full'; got top-left, ")


def test_damaged_shards_end_in_status_three(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    shutil.copytree(scene_shards, tmp_path / "shards")
    shard = tmp_path / "shards" / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    command = ("from", tmp_path / "shards", "--output", tmp_path, *QUICK, "--policy", "centre")
    result = srp_train(*command)
    assert result.exit_code == 3, result.output
    assert "a shard must have the length that was written; got " in result.stderr


def test_evaluate_prints_the_records_figures_for_people_and_machines(
    finished: tuple[RunPaths, RunRecord], srp_train: SrpTrain
) -> None:
    paths, record = finished
    assert record.evaluation is not None
    words = ("evaluate", paths.folder, "--device", "cpu")
    printed = json.loads(srp_train(*words, "--json").stdout)
    assert printed["top1"] == record.evaluation.top1
    assert tuple(printed["shares"]) == record.evaluation.shares
    for_people = srp_train(*words)
    assert for_people.exit_code == 0
    assert re.search(rf"^  policy +{record.evaluation.top1:.2f}$", for_people.stdout, re.M)


def test_evaluate_refuses_shards_of_another_spec(
    finished: tuple[RunPaths, RunRecord], small_shards: Path, srp_train: SrpTrain
) -> None:
    result = srp_train("evaluate", finished[0].folder, "--shards", small_shards, "--device", "cpu")
    assert one_line(result) == (
        "shards must be of the spec that the run was trained on; got canvas_size 48 in training, "
        f"40 here; crop_size 32 in training, 24 here in {small_shards}. "
        "Build shards with the run's options, or train a run on these."
    )


def test_evaluate_without_a_run_says_what_to_type(srp_train: SrpTrain, tmp_path: Path) -> None:
    result = srp_train("evaluate", tmp_path / "none", "--device", "cpu")
    assert one_line(result).startswith("a run must have a record; got none at ")


@pytest.mark.parametrize(
    "command",
    [
        "evaluate RUN", "audit RUN", "report RUNS", "distill RUN",
        "headroom SHARDS -b 16 --runs RUNS", "study SHARDS --profile smoke --output RUNS",
        "from SHARDS -b 16 --output RUNS --experiment whole-s0 --resume",
    ],
)  # fmt: skip
def test_a_record_of_a_million_brackets_ends_every_command_in_one_line_that_names_it(
    command: str, finished: tuple[RunPaths, RunRecord], scene_shards: Path, srp_train: SrpTrain,
    tmp_path: Path,
) -> None:  # fmt: skip
    run = RunPaths(folder=shutil.copytree(finished[0].folder, tmp_path / "whole-s0"))
    run.record.write_text("[" * 10**6)
    places = {"RUN": run.folder, "RUNS": tmp_path, "SHARDS": scene_shards}
    line = one_line(srp_train(*(places.get(word, word) for word in command.split())))
    assert line.startswith("a run's record must be whole; got RecursionError: ")
    assert line.endswith(f" in {run.record}. Delete the run's folder and train it again.")


@pytest.mark.parametrize(
    ("command", "option", "place", "why"),
    [
        ("from SHARDS -b 16 --experiment below --output", "--output", "file", "Not a directory"),
        (
            "from SHARDS -b 16 --experiment below --output",
            "--output",
            "n" * 300,
            "File name too long",
        ),
        ("distill BASE --experiment below --output", "--output", "file", "Not a directory"),
        ("study SHARDS --arms whole --output", "--output", "file", "Not a directory"),
        ("headroom SHARDS -b 16 --runs RUNS --output", "--output", "file", "Not a directory"),
        ("audit RUN -o", "-o/--output", "file/below", "Not a directory"),
        ("report RUNS -o", "-o/--output", "file/below", "File exists"),
        ("report RUNS -o", "-o/--output", "folder", "Is a directory"),
        (
            "from SHARDS -b 16 --experiment below --output",
            "--output",
            "refused",
            "Permission denied",
        ),
        ("audit RUN -o", "-o/--output", "refused", "Permission denied"),
        ("report RUNS -o", "-o/--output", "refused", "Permission denied"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work_with_its_option_and_status_2(
    command: str, option: str, place: str, why: str, finished: tuple[RunPaths, RunRecord],
    train: Callable[..., RunRecord], tiny: Callable[..., TrainConfig], scene_shards: Path,
    srp_train: SrpTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    run = shutil.copytree(finished[0].folder, tmp_path / "runs" / "finished")
    places = {"RUN": run, "RUNS": run.parent, "SHARDS": scene_shards, "BASE": tmp_path / "base"}
    if "BASE" in command:
        train(tiny(policy="random"), tmp_path / "base")
    if place == "refused":  # root may write anywhere
        monkeypatch.setattr(atomic_io, "TemporaryFile", refuse)
    line = one_line(srp_train(*(places.get(w, w) for w in command.split()), tmp_path / place))
    assert line.startswith(f"{option} must be a ")
    assert f" that can be written; got {tmp_path / place}" in line
    assert f": {why}. Name another " in line


def test_study_names_its_profiles(scene_shards: Path, srp_train: SrpTrain) -> None:
    result = srp_train("study", scene_shards, "--profile", "huge")
    assert "'huge' is not one of 'smoke', 'quick', 'full'" in one_line(result)


def test_the_shards_of_these_tests_are_what_they_say(opened: ShardFolder) -> None:
    assert opened.manifest.num_samples("train") == 70
    assert opened.manifest.num_samples("val") == 29


def test_a_run_that_validates_on_dev_is_evaluated_on_it(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    words = (*QUICK, "--policy", "centre", "--dev", "--json")
    trained = srp_train("from", scene_shards, "--output", tmp_path, *words)
    assert trained.exit_code == 0, trained.output
    num_train, num_dev = (
        ShardFolder.open(scene_shards).with_dev().manifest.num_samples(split)
        for split in ("train", "val")
    )
    assert num_train + num_dev == 70
    run = tmp_path / "centre-s42"
    record = load_record(run / "record.json")
    assert (record.data.num_train, record.data.num_val) == (num_train, num_dev)
    told = json.loads(trained.stdout)
    assert told["num_samples"] == num_dev
    for given in ((), ("--shards", scene_shards)):
        again = json.loads(srp_train("evaluate", run, *given, "--device", "cpu", "--json").stdout)
        assert (again["num_samples"], again["top1"]) == (num_dev, told["top1"])
    resumed = srp_train(
        "from", scene_shards, "--output", tmp_path, *words[:-2], "--resume", "--epochs", 1
    )
    assert "got --dev True there, False asked for; shards of other images" in one_line(resumed)
