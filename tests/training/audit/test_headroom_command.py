import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import Result

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress
from training.audit import headroom as estimate
from training.audit.config import HeadroomConfig
from training.audit.headroom import estimate_headroom, plan_parts, work_folder
from training.choose import fit_proposer, out_of_fold
from training.cli.headroom import headroom
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.run import train as train_module
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.crop_logits import CropLogits
from training.study.finished import read_runs_on

SrpTrain = Callable[..., Result]
Folder = tuple[Path, Result]
QUICK = ("--epochs", "2", "-b", "16", "--device", "cpu")
NOT_CONFIG = {"shards", "output", "runs", "as_json", "workers", "device"}


def one_line(result: Result, status: int = 2) -> str:
    """Give the one line that a command ended in."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error: ")


def parts_of(output: Path) -> list[Path]:
    return sorted(path.parent for path in output.glob("headroom/*/*/record.json"))


@pytest.fixture(scope="module")
def estimated(
    scene_shards: Path, srp_train: SrpTrain, tmp_path_factory: pytest.TempPathFactory
) -> Folder:
    """A folder of runs with one estimate, and what it printed. Only read it."""
    output = tmp_path_factory.mktemp("estimate") / "runs"
    result = srp_train("headroom", scene_shards, "--output", output, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    return output, result


def test_options_and_fields_of_the_config_are_the_same_with_the_same_defaults() -> None:
    options = {option.name: option for option in headroom.params}
    assert options.keys() - NOT_CONFIG == {field.name for field in fields(HeadroomConfig)}
    for field in fields(HeadroomConfig):
        option = options[field.name]
        assert isinstance(option, click.Option)
        assert option.default == field.default, field.name
        assert option.help


def test_each_classifier_learns_from_the_half_that_the_other_does_not(estimated: Folder) -> None:
    first, second = (load_record(folder / "record.json") for folder in parts_of(estimated[0]))
    assert (first.config.fold, second.config.fold) == (0, 1)
    assert first.config.seed != second.config.seed
    assert first.config.policy == second.config.policy == "random"


def test_the_command_prints_what_the_two_classifiers_say(estimated: Folder) -> None:
    output, result = estimated
    told = json.loads(result.stdout)
    classified = [CropLogits.load(RunPaths(folder=part).logits) for part in parts_of(output)]
    right = np.stack([logits.right_NK.numpy() for logits in classified])
    assert told["num_samples"] == 29
    assert told["crops"][0] == "full"
    assert told["top1_random"] == pytest.approx(100 * right.mean())
    assert told["top1_crops"] == pytest.approx((100 * right.mean((0, 1))).tolist())
    assert told["room"]["points"] == pytest.approx(told["top1_oracle"] - told["top1_fixed"])
    assert told["gain"]["points"] == pytest.approx(told["top1_fitted"] - told["top1_fixed"])
    assert told["shown"] == []
    assert next(iter(told)) == "verdict"


def test_the_same_command_trains_nothing_twice(
    estimated: Folder, scene_shards: Path, srp_train: SrpTrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, before = estimated
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    monkeypatch.setattr(train_module, "build_state", None)
    monkeypatch.setattr(out_of_fold, "classify_crops", None)
    again = srp_train("headroom", scene_shards, "--output", output, *QUICK, "--json")
    assert again.stdout == before.stdout
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == files


@pytest.mark.parametrize("where", ["half-0", "half-1", "proposer"])
def test_an_estimate_that_was_interrupted_goes_on_and_ends_in_the_same_figures(
    where: str, estimated: Folder, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage = {"half-0": "fit", "half-1": "fit", "proposer": "out_of_fold_logits"}[where]
    original = getattr(estimate, stage)

    def interrupted(*arguments: object, **options: object) -> object:
        if where == "proposer":
            raise KeyboardInterrupt
        paths = options["paths"]
        assert isinstance(paths, RunPaths)

        class Stop(Progress):
            def event(self, *_: object, **__: object) -> None:
                if paths.folder.name == where:
                    raise KeyboardInterrupt

        return original(*arguments, **{**options, "progress": Stop()})

    command = ("headroom", scene_shards, "--output", tmp_path, *QUICK, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(estimate, stage, interrupted)
        line = one_line(srp_train(*command), status=130)
    assert line.startswith("interrupted. Resume with: ")
    assert line.endswith(shlex.join(map(str, command)))
    assert srp_train(*command).stdout == estimated[1].stdout


def test_a_report_does_not_take_an_estimates_parts_for_runs(
    estimated: Folder, finished: tuple[RunPaths, RunRecord], srp_train: SrpTrain, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    shutil.copytree(estimated[0], output)
    assert one_line(srp_train("report", output)).startswith("a report needs runs; got none in ")
    shutil.copytree(finished[0].folder, output / "finished")
    assert [run.record.name for run in read_runs_on(output, finished[1].data.fingerprint)] == [
        "finished"
    ]
    assert srp_train("report", output).exit_code == 0


def test_finished_runs_on_the_same_shards_are_shown_and_others_are_not(
    estimated: Folder, finished: tuple[RunPaths, RunRecord], scene_shards: Path,
    srp_train: SrpTrain, tmp_path: Path,
) -> None:  # fmt: skip
    for name in ("here", "elsewhere"):
        shutil.copytree(finished[0].folder, tmp_path / name)
    record = tmp_path / "elsewhere" / "record.json"
    fingerprint = finished[1].data.fingerprint
    record.write_text(record.read_text().replace(fingerprint, "0" * 64))
    command = ("headroom", scene_shards, "--output", estimated[0], "--runs", tmp_path, *QUICK)
    told = json.loads(srp_train(*command, "--json").stdout)
    assert [shown["arm"] for shown in told["shown"]] == ["finished"]
    assert finished[1].evaluation is not None
    assert told["shown"][0]["chosen"]["mean"] == pytest.approx(finished[1].evaluation.top1)
    assert "what training showed: finished, seed 42\n" in srp_train(*command).stdout


def test_other_options_and_other_shards_have_another_folder(
    opened: ShardFolder, five_shards: Path, tmp_path: Path
) -> None:
    configs = [HeadroomConfig(), HeadroomConfig(epochs=3), HeadroomConfig(limit=20)]
    folders = {work_folder(tmp_path, config, opened) for config in configs}
    folders.add(work_folder(tmp_path, HeadroomConfig(), ShardFolder.open(five_shards)))
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path / "headroom"}


def test_shards_without_the_whole_image_are_judged_by_a_proposer_of_crops(
    five_shards: Path,
) -> None:
    shards = ShardFolder.open(five_shards)
    *_, proposer = plan_parts(HeadroomConfig(batch_size=8), shards, workers=1, device="cpu")
    assert (proposer.config.proposer, proposer.config.position_prior) == ("crops", True)


def test_some_of_the_crops_can_be_asked_for(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    few = ("--candidates", "top-left,centre,full")
    result = srp_train("headroom", scene_shards, "--output", tmp_path, *QUICK, *few, "--json")
    assert result.exit_code == 0, result.output


def test_several_processes_are_refused(opened: ShardFolder, alone: Process, tmp_path: Path) -> None:
    parts = plan_parts(HeadroomConfig(batch_size=8), opened, workers=1, device="cpu")
    two = Process(rank=0, world_size=2, device=alone.device)
    with pytest.raises(ConfigError, match="an estimate runs in one process; got 2"):
        estimate_headroom(parts, shards=opened, folder=tmp_path, process=two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--candidates", "centre"), "an estimate needs at least two candidates to choose among; "),
        (("--candidates", "left"), "--candidates must be in the shards; got 'left', but they hold"),
        (("-b", "64"), "each half of the training images must fill a batch; got --batch-size 64 "),
        (("--limit", "1"), "each half of the training images must fill a batch; got --batch-size "),
        (("--limit", "0"), "--limit must be at least 1; got 0."),
        (("--model", "resnet1"), "--model must be a name that timm knows; got 'resnet1'. "),
        (("--epochs", "0"), "--epochs must be at least 1; got 0."),
        (("--lr", "nan"), "--lr must be at least 0; got nan."),
        (("--runs", "nowhere"), "Invalid value for '--runs': Directory 'nowhere' does not exist."),
        (("-b", "1"), "--batch-size must be at least 2; got 1."),
    ],
)
def test_bad_input_ends_in_one_line_before_anything_is_trained(
    options: tuple[str, ...], message: str, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    result = srp_train("headroom", scene_shards, "--output", tmp_path, *QUICK, *options)
    assert one_line(result).startswith(message)
    assert not list(tmp_path.iterdir())


def test_too_large_a_batch_is_told_the_largest_that_works(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    result = srp_train("headroom", scene_shards, "--output", tmp_path)
    assert one_line(result) == (
        "each half of the training images must fill a batch; got --batch-size 64 for 70 images in "
        f"{scene_shards}. Lower --batch-size to 29, and leave --limit out if it is given."
    )


def test_a_folder_without_shards_says_what_to_type(srp_train: SrpTrain, tmp_path: Path) -> None:
    result = srp_train("headroom", tmp_path / "none")
    assert one_line(result).startswith("SHARDS must be a folder with a manifest.json; got ")


def test_a_loss_that_is_no_number_ends_in_one_line(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SelectiveClassifier.logits
    monkeypatch.setattr(SelectiveClassifier, "logits", lambda *given: real(*given) * torch.inf)
    command = ("headroom", scene_shards, "--output", tmp_path, *QUICK, "--lr", "3")
    line = one_line(srp_train(*command), status=1)
    assert line.startswith("a small classifier must learn; got a loss or weights that are not ")
    assert line.endswith("Use a --lr below 3.0.")


def test_a_fit_that_diverges_ends_in_one_line_and_keeps_the_classifiers(
    estimated: Folder, scene_shards: Path, srp_train: SrpTrain, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = tmp_path / "runs"
    shutil.copytree(estimated[0], output)
    monkeypatch.setattr(
        fit_proposer, "_loss", lambda given, *_, **__: torch.inf + given.scores_BK.sum()
    )
    line = one_line(srp_train("headroom", scene_shards, "--output", output, *QUICK), status=1)
    assert line.startswith(
        "the loss must stay finite; got inf at step 1 of epoch 1 of the proposer's fit. "
        f"The classifiers are kept, in {output}"
    )
    assert line.endswith("Use a lower --lr, or another --seed.")
    monkeypatch.undo()
    again = srp_train("headroom", scene_shards, "--output", output, *QUICK, "--json")
    assert again.stdout == estimated[1].stdout
