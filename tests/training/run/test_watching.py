import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reported import Reported
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT
from training.choose.method import train as train_stages
from training.config import TrainConfig
from training.data.processes import Process
from training.run import train as train_module
from training.run.watching import watched
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

Tiny = Callable[..., TrainConfig]
Train = Callable[..., RunRecord]


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars_of(folder: Path) -> dict[str, dict[int, float]]:
    events = events_of(folder)
    names = events.Tags()["scalars"]
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in names}


@pytest.fixture(scope="module")
def followed(
    tiny: Tiny, opened: ShardFolder, alone: Process, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunRecord]:
    """A run in stages that wrote event files. Only read it."""
    folder = tmp_path_factory.mktemp("followed") / "run"
    config = tiny(
        policy="distilled", epochs=3, explore_epochs=1, fit_epochs=1, log_tensorboard=True
    )
    return folder, train_stages(config, shards=opened, paths=RunPaths(folder=folder), process=alone)


def test_every_figure_of_the_record_is_in_the_one_event_file_of_its_folder(
    followed: tuple[Path, RunRecord],
) -> None:
    folder, record = followed
    assert len(list(folder.glob("events.*"))) == 1
    found = scalars_of(folder)
    for name, field in (
        ("train/loss", "train_loss"),
        ("train/top1", "train_top1"),
        ("val/top1", "val_top1"),
        ("speed/images per s", "images_per_s"),
    ):
        recorded = {epoch.epoch: getattr(epoch, field) for epoch in record.epochs}
        assert found[name] == pytest.approx(recorded, rel=1e-5)
    assert record.evaluation is not None
    shares = {name: found[f"crops/{name}, %"][2] for name in record.evaluation.crops}
    assert list(shares.values()) == pytest.approx([100 * s for s in record.evaluation.shares])
    assert set(found["rate/classifier"]) == {1, 2}
    assert "speed/waited for data, %" in found


def test_the_halves_have_their_own_event_file_and_nothing_makes_another_folder(
    followed: tuple[Path, RunRecord],
) -> None:
    folder, record = followed
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    assert folders == {"half-0", "half-1"}
    for half, curve in zip(sorted(folders), record.stages[0].curves, strict=True):
        assert len(list((folder / half).glob("events.*"))) == 1
        recorded = {epoch.epoch: epoch.train_loss for epoch in curve}
        assert scalars_of(folder / half)["train/loss"] == pytest.approx(recorded, rel=1e-5)


def test_pictures_show_the_choices_after_each_validation(
    followed: tuple[Path, RunRecord],
) -> None:
    events = events_of(followed[0])
    pictures = events.Images("val/choices")
    assert [(each.step, each.width, each.height) for each in pictures] == [
        (1, 6 * 192, 192), (2, 6 * 192, 192),
    ]  # fmt: skip
    assert "run.toml/text_summary" in events.Tags()["tensors"]


def test_what_watches_a_run_changes_none_of_its_figures(
    tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    config = tiny(policy="straight-through", epochs=2)
    plain = train(config, tmp_path / "plain")
    watched = train(replace(config, log_tensorboard=True), tmp_path / "watched")
    assert not list((tmp_path / "plain").glob("events.*"))
    assert watched.evaluation == plain.evaluation
    for one, other in zip(plain.epochs, watched.epochs, strict=True):
        assert (one.train_loss, one.val_top1) == (other.train_loss, other.val_top1)
    assert (tmp_path / "watched/last.safetensors").stat().st_size > 0


def kill_before_save(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Kill a run when it has shown an epoch, before that is saved."""
    save, left = train_module.save_run, [number]

    def killed(*arguments: Any, **options: Any) -> float:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return save(*arguments, **options)

    monkeypatch.setattr(train_module, "save_run", killed)


def test_a_resumed_run_shows_each_epoch_once(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(policy="straight-through", epochs=3, log_tensorboard=True)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_before_save(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder)
    assert scalars_of(folder)["train/loss"].keys() == {1, 2}  # the second was not saved
    record = train(config, folder, resume=True)
    assert len(list(folder.glob("events.*"))) == 2
    events = events_of(folder).Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3]
    losses = [epoch.train_loss for epoch in record.epochs]
    assert [event.value for event in events] == pytest.approx(losses, rel=1e-5)


def test_without_tensorboard_a_run_says_once_how_to_install_it_and_goes_on(
    tiny: Tiny, opened: ShardFolder, alone: Process, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    class Told(Reported):
        lines: list[str] = []  # noqa: RUF012

        def event(self, name: str, /, text: str = "", **fields: object) -> None:
            self.lines += [text] * (name == "unwatched")

    config = tiny(policy="distilled", epochs=2, fit_epochs=1, log_tensorboard=True)
    record = train_stages(
        config, shards=opened, paths=RunPaths(folder=tmp_path), process=alone, progress=Told()
    )
    assert record.evaluation is not None
    assert Told.lines == [
        "note: the run writes no event file, since TensorBoard is not installed. Install it with: "
        "pip install tensorboard"
    ]


def test_a_package_that_is_missing_is_told_before_the_work(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError) as caught:
        train(tiny(log_trackio=True), tmp_path / "run")
    assert str(caught.value) == (
        "--log-trackio needs the package trackio, which is not installed. Install it with: "
        "pip install trackio"
    )
    assert not list(tmp_path.iterdir())


def test_only_rank_0_watches(
    tiny: Tiny, opened: ShardFolder, finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    config = tiny(log_tensorboard=True, log_trackio=True)
    record, other = replace(finished[1], config=config), Process(rank=1, world_size=2)
    with watched(
        RunPaths(folder=tmp_path), record, other, SILENT, plan=opened.crop_layout
    ) as watch:
        assert watch.writers == ()
    assert not list(tmp_path.iterdir())


class Trackio:
    """Keeps what is logged, with the calls that trackio has."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.is_over = False

    def init(self, **options: Any) -> "Trackio":
        self.begun.append(options)
        return self

    def log(self, figures: dict[str, Any], *, step: int) -> None:
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.is_over = True

    def Image(self, picture: Any) -> tuple[int, ...]:
        return tuple(picture.shape)


def test_trackio_gets_the_same_figures(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", package)
    record = train(tiny(policy="expected", epochs=2, log_trackio=True), tmp_path / "run")
    begun = package.begun[0]
    assert begun.keys() == {"project", "name", "config", "resume"}
    assert (begun["project"], begun["resume"]) == ("srp", "never")
    assert begun["name"] == f"{tmp_path.name}/run"
    assert begun["config"]["policy"] == "expected"
    losses = {step: each["train/loss"] for step, each in package.logged if "train/loss" in each}
    assert losses == {epoch.epoch: epoch.train_loss for epoch in record.epochs}
    pictures = [each["val/choices"] for _, each in package.logged if "val/choices" in each]
    assert pictures == [(192, 6 * 192, 3)] * 2
    assert package.is_over


@pytest.mark.sweep
def test_wandb_offline_keeps_a_run_and_goes_on_with_it(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="an optional package")
    for name, value in (("MODE", "offline"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    config, folder = tiny(policy="straight-through", epochs=2, log_wandb=True), tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_before_save(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder)
    train(config, folder, resume=True)
    parts = sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))
    assert len({name.rpartition("-")[2] for name in parts}) == 1  # of one run
    assert list((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def test_what_a_package_refuses_is_one_line(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("no key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(ConfigError) as caught:
        train(tiny(log_wandb=True), tmp_path / "run")
    assert str(caught.value) == (
        "--log-wandb must be able to begin a run; got ValueError: no key. Correct what it says, or "
        "drop --log-wandb."
    )
