from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from training.choose.config import DistillConfig
from training.choose.method import FORWARD
from training.config import TrainConfig
from training.data.processes import Process
from training.run import train as train_module
from training.run.state import settled
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.study import runner
from training.study.finished import FinishedRun
from training.study.profiles import PROFILES, PlannedArm, Profile, compare
from training.study.runner import plan_runs, run_study


def test_runs_are_all_arms_of_one_seed_before_the_next(opened: ShardFolder) -> None:
    profile = replace(PROFILES["smoke"], seeds=(0, 1))
    runs = plan_runs(profile, opened, device="cpu", workers=1)
    names = [arm.name for arm in profile.arms]
    assert [run.name for run in runs] == [f"{name}-s{s}" for s in (0, 1) for name in names]
    assert all(run.config.seed == int(run.name[-1]) for run in runs)
    assert all((run.config.device, run.config.workers) == ("cpu", 1) for run in runs)
    assert all(run.config.epochs == profile.epochs for run in runs)


def test_an_arm_is_trained_for_its_rounds_and_evaluated_as_often_as_the_profile_says(
    opened: ShardFolder,
) -> None:
    once, twice = TrainConfig(policy="random"), TrainConfig(proposer="map")
    profile = Profile(
        epochs=4, seeds=(0,), evaluations=2,
        arms=(
            PlannedArm(name="once", config=once), PlannedArm(name="twice", config=twice, rounds=2),
        ),
    )  # fmt: skip

    def planned(epochs: int | None) -> list[tuple[int, int]]:
        runs = plan_runs(profile, opened, device="cpu", workers=1, epochs=epochs)
        return [(run.config.epochs, run.config.val_interval) for run in runs]

    assert planned(None) == [(4, 2), (8, 4)]
    assert planned(1) == [(1, 1), (2, 1)]


def test_arms_are_run_with_those_that_they_need_and_unknown_ones_are_refused(
    opened: ShardFolder,
) -> None:
    def names(*arms: str) -> list[str]:
        runs = plan_runs(DISTILLED, opened, device="cpu", workers=1, seeds=(3,), arms=arms)
        return [run.name for run in runs]

    assert names("random") == ["random-s3"]
    assert names("distilled-map") == ["random-s3", "distilled-map-s3"]
    assert names("tuned") == ["random-s3", "distilled-map-s3", "tuned-s3"]
    with pytest.raises(
        ConfigError, match=r"--arms must be in the profile; got 'tune'\. Choose from"
    ):
        names("random", "tune")


def test_a_run_through_all_crops_costs_as_many_times_as_much(opened: ShardFolder) -> None:
    profile = replace(PROFILES["full"], arms=tuple(compare((16,))))
    runs = plan_runs(profile, opened, device="cpu", workers=1)
    cost = {run.name: run.cost for run in runs}
    assert 4 < cost["expected-g16-s0"] / cost["straight-through-g16-s0"] <= 5


def test_an_arm_whose_start_has_halves_does_not_explore(
    opened: ShardFolder, tmp_path: Path
) -> None:
    for name in ("chooser-s0/half-0", "chooser-s0/half-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "last.safetensors").touch()
    source = f"{tmp_path}/{{arm}}-s{{seed}}"
    runs = plan_runs(PROFILES["smoke"], opened, device="cpu", workers=1, initial_checkpoint=source)
    explored = {run.name: run.config.explore_epochs for run in runs}
    assert explored.pop("chooser-s0") == 0
    assert set(explored.values()) == {None}
    (tmp_path / "chooser-s0/half-1/last.safetensors").unlink()
    runs = plan_runs(PROFILES["smoke"], opened, device="cpu", workers=1, initial_checkpoint=source)
    assert {run.config.explore_epochs for run in runs} == {None}


def test_a_profile_too_large_for_the_shards_is_refused_before_any_run(opened: ShardFolder) -> None:
    with pytest.raises(ConfigError, match="--profile must fit the shards; got glimpses of 64 px"):
        plan_runs(PROFILES["full"], opened, device="cpu", workers=1)


def test_shards_without_the_whole_image_are_refused_before_any_run(five_shards: Path) -> None:
    with pytest.raises(ConfigError, match="--candidates must be in the shards; got 'full'"):
        plan_runs(PROFILES["smoke"], ShardFolder.open(five_shards), device="cpu", workers=1)


@pytest.mark.parametrize("name", PROFILES)
def test_no_two_arms_of_a_profile_train_the_same(name: str) -> None:
    arms = PROFILES[name].arms
    # What several proposers are fitted to is made once for each base: see `PlannedRun.is_judged`.
    trained = [(arm.config, arm.distilled, arm.begins_with, arm.rounds) for arm in arms]
    assert all(trained.count(each) == 1 for each in trained)


def test_a_run_that_proposers_are_fitted_to_costs_its_folds_as_well(opened: ShardFolder) -> None:
    def cost(*arms: str) -> dict[str, float]:
        runs = plan_runs(DISTILLED, opened, device="cpu", workers=1, arms=arms)
        return {run.name: run.cost for run in runs}

    plain, judged = cost("random")["random-s0"], cost("tuned")["random-s0"]
    # An epoch of half the 70 images for each fold, and six crops of all of them, classified.
    assert judged - plain == 70 + 6 * 70 / FORWARD


def test_a_study_leaves_a_record_of_each_run_and_trains_none_twice(
    opened: ShardFolder, alone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        replace(run, config=replace(run.config, model="test_resnet", batch_size=16, amp=False))
        for run in plan_runs(PROFILES["smoke"], opened, device="cpu", workers=1)
    ]

    def study(progress: Progress = SILENT) -> list[RunRecord]:
        return run_study(runs, shards=opened, output=tmp_path, process=alone, progress=progress)

    class Killed(BaseException):
        pass

    class KillInThird(Progress):
        def event(self, name: str, /, text: str = "", **fields: object) -> None:
            if (name, fields.get("position")) == ("run", 3):
                raise Killed

    with pytest.raises(Killed):
        study(KillInThird())
    assert sorted(path.parent.name for path in tmp_path.rglob("record.json")) == [
        "centre-s0",
        "whole-s0",
    ]
    records = study()
    assert [record.name for record in records] == [run.name for run in runs]
    for run, record in zip(runs, records, strict=True):
        assert record.evaluation is not None
        assert record.config == settled(run.config, opened)
        assert load_record(RunPaths(folder=tmp_path / run.name).record) == record

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(train_module, "build_state", None)
    assert study() == records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


DISTILLED = Profile(
    epochs=1,
    seeds=(0,),
    arms=(
        PlannedArm(name="random", config=TrainConfig(policy="random")),
        PlannedArm(
            name="distilled-map",
            config=TrainConfig(policy="random"),
            distilled=DistillConfig(proposer="map", epochs=2, batch_size=16),
        ),
        PlannedArm(
            name="tuned",
            config=TrainConfig(policy="straight-through", proposer="map", lr=0.0, weight_decay=0.0),
            begins_with="distilled-map",
        ),
    ),
)


def test_proposers_are_fitted_to_the_run_of_the_same_seed(
    opened: ShardFolder, alone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        replace(run, config=replace(run.config, model="test_resnet", batch_size=16, amp=False))
        for run in plan_runs(DISTILLED, opened, device="cpu", workers=1, seeds=(3,))
    ]
    assert [run.name for run in runs] == ["random-s3", "distilled-map-s3", "tuned-s3"]

    def study() -> list[RunRecord]:
        return run_study(runs, shards=opened, output=tmp_path, process=alone)

    records = study()
    fitted = records[1].config
    assert (fitted.policy, fitted.proposer, fitted.seed) == ("distilled", "map", 3)
    assert fitted.model == "test_resnet"
    assert (tmp_path / "random-s3/out_of_fold.safetensors").exists()
    assert records[2].config.initial_checkpoint == str(tmp_path / "distilled-map-s3")
    begun, tuned = (load_file(tmp_path / run.name / "last.safetensors") for run in runs[1:])
    weights = [name for name in begun if name.startswith("model.") and name.endswith(".weight")]
    assert any("proposer" in name for name in weights)
    assert all(torch.equal(begun[name], tuned[name]) for name in weights)
    monkeypatch.setattr(train_module, "build_state", None)
    assert study() == records
    runs[1] = replace(runs[1], distilled=DistillConfig(proposer="joint", seed=3))
    with pytest.raises(ConfigError, match=r"got others in .*distilled-map-s3\. Delete"):
        study()


def test_several_processes_are_refused_before_any_run_where_a_proposer_is_to_be_fitted(
    opened: ShardFolder, alone: Process, make_run: Callable[..., FinishedRun], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    runs = plan_runs(DISTILLED, opened, device="cpu", workers=1)
    with pytest.raises(ConfigError) as caught:
        run_study(
            runs, shards=opened, output=tmp_path, process=replace(alone, world_size=2),
        )  # fmt: skip
    assert str(caught.value) == (
        "a study that fits proposers runs in one process; got 2. Type the same with srp-train in "
        "place of torchrun and its options."
    )
    assert not list(tmp_path.iterdir())
    records = [make_run(run.name, policy="random").record for run in runs]
    named = {record.name: record for record in records}
    monkeypatch.setattr(runner, "_finish", lambda run, **_: named[run.name])
    for run in runs:
        if run.distilled is not None:
            (tmp_path / run.name).mkdir()
            RunPaths(folder=tmp_path / run.name).record.touch()
    done = run_study(runs, shards=opened, output=tmp_path, process=replace(alone, world_size=2))
    assert done == records  # all that is left to train may be trained by several


def test_what_a_diverged_run_is_needed_for_is_not_run_and_the_others_are(
    opened: ShardFolder, alone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = (*DISTILLED.arms, PlannedArm(name="alone", config=TrainConfig(policy="random")))
    planned = plan_runs(replace(DISTILLED, arms=arms), opened, device="cpu", workers=1)
    real, begun = runner.train, []

    def fit_or_diverge(config: TrainConfig, *, paths: RunPaths, **rest: Any) -> RunRecord:
        begun.append(paths.folder.name)
        if paths.folder.name == "random-s0":
            raise DivergedError("a loss that is no number.")
        small = replace(config, model="test_resnet", batch_size=16, amp=False)
        return real(small, paths=paths, **rest)

    monkeypatch.setattr(runner, "train", fit_or_diverge)
    with pytest.raises(DivergedError) as caught:
        run_study(planned, shards=opened, output=tmp_path, process=alone)
    assert begun == ["random-s0", "alone-s0"]
    assert str(caught.value) == (
        "3 of 4 runs diverged, or needed one that diverged: "
        "random-s0 (a loss that is no number.) | "
        "distilled-map-s0 (skipped, since random-s0 is not finished) | "
        "tuned-s0 (skipped, since distilled-map-s0 is not finished) "
        f"The other runs are finished, in {tmp_path}."
    )


def test_every_run_begins_with_the_classifier_of_its_seed_or_of_its_own_arm(
    opened: ShardFolder,
) -> None:
    def begun(source: str) -> list[str]:
        runs = plan_runs(
            DISTILLED, opened, device="cpu", workers=1, seeds=(5, 6), epochs=9,
            initial_checkpoint=source,
        )  # fmt: skip
        assert {run.config.epochs for run in runs} == {9}
        return [run.config.initial_checkpoint for run in runs]

    assert begun("runs/small-s{seed}") == ["runs/small-s5"] * 3 + ["runs/small-s6"] * 3
    names = [f"{arm}-s{seed}" for seed in (5, 6) for arm in ("random", "distilled-map", "tuned")]
    assert begun("runs/{arm}-s{seed}") == [f"runs/{name}" for name in names]
