import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from training.report.study_json import study_json
from training.study.finished import FinishedRun, group_arms

MakeRun = Callable[..., FinishedRun]


def test_every_arm_is_told_with_its_seeds_and_its_tests_against_what_does_not_choose(
    runs: list[FinishedRun],
) -> None:
    arms = group_arms(runs)
    told = json.loads(json.dumps(study_json(arms), allow_nan=False))
    assert told["format"] == "srp-report/2"
    assert [arm["name"] for arm in told["arms"]] == [arm.name for arm in arms]
    for arm, fields in zip(arms, told["arms"], strict=True):
        assert fields["seeds"] == list(arm.seeds)
        assert len(fields["top1_of_seeds"]) == len(arm.runs)
        assert fields["top1"]["mean"] == pytest.approx(arm.top1.mean, abs=1e-3)
        assert fields["top1_any_right"]["mean"] > fields["top1_oracle"]["mean"]
        assert (fields["skill"]["mean"] is None) == (arm.policy == "whole")
        assert sum(fields["shares"].values()) == pytest.approx(1, abs=1e-2)
    large, whole = told["arms"][1], told["arms"][-1]
    assert whole["against"] == {}
    assert large["against"]["whole"]["seeds"] == [0, 1]
    points = large["top1"]["mean"] - whole["top1"]["mean"]
    assert large["against"]["whole"]["points"] == pytest.approx(points, abs=1e-2)
    assert 0 < large["against"]["whole"]["p"] <= 1
    assert 0 < large["against"]["whole"]["p_over_seeds"] <= 1
    assert large["against"]["whole"]["method"] == "bootstrap over images and seeds"


def test_without_logits_there_is_no_test_and_one_seed_has_no_sd(make_run: MakeRun) -> None:
    chosen = make_run("expected-s0", policy="expected", seed=0)
    whole = make_run("whole-s0", policy="whole", seed=0)
    told = study_json(group_arms([replace(chosen, logits=None), whole]))
    assert told["arms"][0]["against"] == {"whole": None}
    assert told["arms"][0]["top1"]["sd"] is None
    assert told["arms"][0]["top1_oracle"]["mean"] is told["arms"][0]["skill"]["mean"] is None
    assert told["arms"][0]["any_right_skill"]["mean"] is not None


def test_options_are_those_that_differ(make_run: MakeRun) -> None:
    slow, fast = (make_run(f"a{lr}-s0", seed=0, lr=lr) for lr in (0.1, 0.2))
    told = study_json(group_arms([slow, fast]))
    assert [arm["options"] for arm in told["arms"]] == [{"lr": 0.1}, {"lr": 0.2}]
