import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ShardFolder
from pipeline.command.options_file import read_options
from pipeline.common.errors import CheckpointError
from training.config import TrainConfig
from training.run.state import settled
from training.saved import record as records
from training.saved.folder import RunPaths
from training.saved.record import (
    DataRecord,
    EpochRecord,
    RunRecord,
    current_commit,
    describe_hardware,
    load_record,
    run_options,
)


def test_a_finished_record_survives_its_file(
    finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    paths, record = finished
    assert load_record(paths.record) == record
    record.save(tmp_path / "record.json")
    assert (tmp_path / "record.json").read_bytes() == paths.record.read_bytes()


def test_an_unfinished_record_survives_its_file(
    finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    record = replace(finished[1], evaluation=None, epochs=())
    record.save(tmp_path / "record.json")
    assert load_record(tmp_path / "record.json") == record


def test_a_record_says_what_was_run_on_what_and_what_came_out(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, tiny: Callable[..., TrainConfig]
) -> None:
    _, record = finished
    assert record.name == "finished"
    assert record.config == settled(tiny(epochs=2), opened)
    assert record.config.proposer_channels  # a record says what was run
    assert record.data == DataRecord.of(opened.manifest)
    assert (record.data.num_train, record.data.num_val) == (70, 29)
    assert record.data.fingerprint == opened.manifest.fingerprint
    assert record.shards == opened.place
    assert record.world_size == 1
    assert [epoch.epoch for epoch in record.epochs] == [1, 2]
    assert record.seconds >= sum(epoch.seconds for epoch in record.epochs)
    assert all(epoch.images_per_s > 0 for epoch in record.epochs)


STORED = [
    path
    for path in sorted((Path(records.__file__).parents[1] / "results").rglob("*.json"))
    if f'"{records.FORMAT}"' in path.read_text()[:100]
]


def test_every_record_that_is_kept_beside_the_code_can_be_read() -> None:
    assert len(STORED) > 100
    for path in STORED:
        record = load_record(path)
        fields = json.loads(path.read_text())["config"]
        assert record.config.policy == fields["policy"]
        assert (record.config.proposer_channels is None) <= (not record.config.selects)


def test_a_run_of_before_may_be_gone_on_with_though_its_record_holds_what_it_ignored(
    train: Callable[..., RunRecord], tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config, paths = tiny(policy="centre"), RunPaths(folder=tmp_path / "run")
    record = train(config, paths.folder)
    fields = json.loads(paths.record.read_text())
    fields["config"] |= {"proposer_channels": [8, 16, 32], "tau_end": 0.7}
    paths.record.write_text(json.dumps(fields))
    assert train(config, paths.folder, resume=True) == record


def test_records_of_earlier_versions_are_read_whose_any_crop_right_was_called_oracle(
    finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    fields = json.loads(finished[0].record.read_text(encoding="utf-8"))
    evaluation = fields["evaluation"]
    assert "top1_oracle" not in evaluation
    evaluation["top1_oracle"] = evaluation.pop("top1_any_right")
    (tmp_path / "record.json").write_text(json.dumps(fields), encoding="utf-8")
    assert load_record(tmp_path / "record.json") == finished[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "distilled", "proposer_channels": (8, 16), "explore_epochs": 1, "epochs": 3},
        {"sched": "cosine", "momentum": 0.95, "warmup_epochs": 1, "lr": 1e-5, "opt": "adamw"},
        {"policy": "whole", "scale": (0.25, 1.0), "model_kwargs": ("stem_type=deep", 'a="b"')},
        {"model_ema": True, "model_ema_decay": 0.9, "initial_checkpoint": "runs/ü x"},
        {"workers": 5, "preload": "ram", "mean": (0.0, 0.5, 1.0), "fold": 1, "policy": "random"},
    ],
)
def test_the_options_beside_a_record_train_the_same_config_again(
    options: dict[str, Any], finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    config = TrainConfig(**options)
    path = tmp_path / "run.toml"
    text = run_options(replace(finished[1], config=config))
    path.write_text(text, encoding="utf-8")
    assert TrainConfig(**read_options(path, TrainConfig)) == config
    assert f"# SHARDS were {finished[1].shards}, " in text
    assert "momentum" not in text or config.sched != "onecycle"
    assert "workers" in text or config.workers == TrainConfig.workers


def test_a_missing_record_says_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(CheckpointError) as caught:
        load_record(path)
    assert str(caught.value) == (
        f"a run must have a record; got none at {path}. "
        "Name the folder of a run, or train one: srp-train from SHARDS"
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace("srp-run/1", "srp-run/0"),
        lambda text: json.dumps({**json.loads(text), "mood": "good"}),
        lambda text: json.dumps({**json.loads(text), "epochs": [{"epoch": 1}]}),
        lambda text: "\udcff",
        lambda text: '"text"',
        lambda text: "[" * 10**6 + "]" * 10**6,
        lambda text: text.replace('"shift": 2', '"shift": ' + "[" * 10**5 + "]" * 10**5),
    ],
)
def test_a_damaged_record_is_named(
    damage: Callable[[str], str], finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    text = damage(finished[0].record.read_text())
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError) as caught:
        load_record(path)
    assert str(caught.value).startswith("a run's record must be whole; got ")
    assert str(caught.value).endswith(f"in {path}. Delete the run's folder and train it again.")


def test_the_commit_carries_a_plus_where_the_tree_has_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = str(Path(records.__file__).resolve().parents[2])
    answers = {"--show-toplevel": root, "--short": "abc1234", "--porcelain": ""}
    monkeypatch.setattr(records, "_git", lambda _folder, _verb, option, *_: answers[option])
    assert current_commit() == "abc1234"
    answers["--porcelain"] = " M training/run/train.py"
    assert current_commit() == "abc1234+"
    answers["--show-toplevel"] = "/somebody/elses/project"
    assert current_commit() == "unknown"


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "")]
)
def test_without_git_the_commit_is_unknown(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(records, "_git", fail)
    assert current_commit() == "unknown"


def test_the_hardware_is_named_with_what_decides_its_speed() -> None:
    text = describe_hardware(torch.device("cpu"))
    assert f"torch {torch.__version__}" in text
    assert f"{torch.get_num_threads()} threads" in text


@pytest.mark.parametrize(
    ("waited_s", "told"),
    [(None, ""), (0.0, ""), (0.09, ""), (0.11, "1 %"), (1.2, "12 %"), (10.0, "100 %")],
)
def test_the_line_of_an_epoch_says_how_long_it_waited_if_that_is_a_hundredth(
    waited_s: float | None, told: str
) -> None:
    epoch = EpochRecord(
        epoch=2, train_loss=0.5, train_top1=80.0, val_top1=None, images_per_s=40.0, seconds=10.0,
        waited_s=waited_s,
    )  # fmt: skip
    line = "explore, epoch 2/3: loss 0.5000, train top-1 80.00 %, 40 images/s"
    waited = f", waited for data {told} of the time" if told else ""
    assert epoch.line("explore", 3) == line + waited


def test_the_cells_of_an_epoch_hold_what_its_line_says() -> None:
    epoch = EpochRecord(
        epoch=2, train_loss=1.5, train_top1=40.0, val_top1=None, images_per_s=99.6, seconds=10.0,
        waited_s=1.0,
    )  # fmt: skip
    assert epoch.cells("exploit", 3) == {
        "stage": "exploit", "epoch": "2/3", "loss": "1.5000", "train top-1, %": "40.00",
        "val top-1, %": "", "images/s": "100", "waited, %": "10",
    }  # fmt: skip
    assert replace(epoch, val_top1=71.25).cells("exploit", 3)["val top-1, %"] == "71.25"


def test_an_epoch_of_before_has_no_wait(
    finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    fields = json.loads(finished[0].record.read_text())
    assert all(epoch.pop("waited_s") > 0 for epoch in fields["epochs"])
    del fields["cache"], fields["window_mib"]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(fields))
    epochs = tuple(replace(epoch, waited_s=None) for epoch in finished[1].epochs)
    assert load_record(path) == replace(finished[1], epochs=epochs)
