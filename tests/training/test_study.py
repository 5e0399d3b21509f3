from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.crops import plan_crops
from pipeline.errors import ConfigError
from training import loop
from training.config import PROFILE_NAMES, RunPaths
from training.data import Shards
from training.distributed import Process
from training.loop import OnEpoch, OnProgress
from training.model import candidate_indices
from training.records import RunRecord, load_record
from training.study import PROFILES, Run, arms, plan_runs, run_study

SIZES = {"smoke": (96, 64), "quick": (168, 112), "full": (336, 224)}


def quiet(_run: Run, _position: int) -> tuple[OnProgress, OnEpoch]:
    return (lambda _: None), (lambda _: None)


def test_the_profiles_are_those_that_the_command_offers() -> None:
    assert tuple(PROFILES) == PROFILE_NAMES


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_arms_have_names_and_configs_of_their_own(name: str) -> None:
    listed = list(arms(PROFILES[name]))
    assert len({arm.name for arm in listed}) == len(listed)
    assert len({arm.config for arm in listed}) == len(listed)


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_arm_fits_shards_with_the_whole_image_and_the_five(name: str) -> None:
    canvas, crop = SIZES[name]
    plan = plan_crops("full+five", canvas_px=canvas, crop_px=crop)
    for arm in arms(PROFILES[name]):
        assert candidate_indices(arm.config, plan)
        assert (arm.config.glimpse_size or 1) <= crop


def test_every_profile_has_the_predecessor_a_better_policy_and_the_fixed_crops() -> None:
    for profile in PROFILES.values():
        policies = {arm.config.policy for arm in arms(profile)}
        assert policies >= {"whole", "centre", "blend", "straight-through"}


def test_the_full_profile_has_the_predecessors_glimpses_epochs_and_three_seeds() -> None:
    full = PROFILES["full"]
    assert full.predecessor_glimpses == (32, 64, 128, 224)
    assert full.epochs == 20
    assert len(set(full.seeds)) == 3


def test_runs_are_all_arms_of_one_seed_before_the_next(opened: Shards) -> None:
    profile = replace(PROFILES["smoke"], seeds=(0, 1))
    runs = plan_runs(profile, opened, device="cpu", workers=1)
    names = [arm.name for arm in arms(profile)]
    assert [run.name for run in runs] == [f"{name}-s{s}" for s in (0, 1) for name in names]
    assert all(run.config.seed == int(run.name[-1]) for run in runs)
    assert all((run.config.device, run.config.workers) == ("cpu", 1) for run in runs)
    assert all(run.config.epochs == profile.epochs for run in runs)


def test_a_run_through_all_crops_costs_as_many_times_as_much(opened: Shards) -> None:
    profile = replace(PROFILES["full"], glimpses=(16,), predecessor_glimpses=())
    runs = plan_runs(profile, opened, device="cpu", workers=1)
    cost = {run.name: run.cost for run in runs}
    assert 4 < cost["expected-g16-s0"] / cost["straight-through-g16-s0"] <= 5


def test_a_profile_too_large_for_the_shards_is_refused_before_any_run(opened: Shards) -> None:
    with pytest.raises(ConfigError, match="--profile must fit the shards; got glimpses of 64 px"):
        plan_runs(PROFILES["full"], opened, device="cpu", workers=1)


def test_shards_without_the_whole_image_are_refused_before_any_run(five_shards: Path) -> None:
    with pytest.raises(ConfigError, match="--candidates must be in the shards; got 'full'"):
        plan_runs(PROFILES["smoke"], Shards.open(five_shards), device="cpu", workers=1)


def test_a_study_leaves_a_record_of_each_run_and_trains_none_twice(
    opened: Shards, alone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        replace(run, config=replace(run.config, model="test_resnet", batch_size=16, amp=False))
        for run in plan_runs(PROFILES["smoke"], opened, device="cpu", workers=1)
    ]

    def study(on_run: Callable[[Run, int], tuple[OnProgress, OnEpoch]] = quiet) -> list[RunRecord]:
        return run_study(runs, shards=opened, output=tmp_path, process=alone, on_run=on_run)

    class Killed(BaseException):
        pass

    def kill_in_third(run: Run, position: int) -> tuple[OnProgress, OnEpoch]:
        if position == 2:
            raise Killed
        return quiet(run, position)

    with pytest.raises(Killed):
        study(kill_in_third)
    assert sorted(path.parent.name for path in tmp_path.rglob("record.json")) == [
        "centre-s0",
        "whole-s0",
    ]
    records = study()
    assert [record.name for record in records] == [run.name for run in runs]
    for run, record in zip(runs, records, strict=True):
        assert record.evaluation is not None
        assert record.config == run.config
        assert load_record(RunPaths(folder=tmp_path / run.name).record) == record

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(loop, "build_trainer", None)
    assert study() == records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
