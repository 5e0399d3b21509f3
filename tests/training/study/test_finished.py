"""Runs become arms, arms become figures, and the tests between them are exact."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.study.finished import (
    FinishedRun,
    Spread,
    best_arm,
    differing_options,
    group_arms,
    spread,
)
from training.study.paired import (
    PairedTest,
    compare_differences,
    crossed_bootstrap,
    few_seeds,
    mcnemar,
    paired_t,
    paired_test,
)

MakeRun = Callable[..., FinishedRun]


def test_every_run_is_in_one_arm_and_an_arm_differs_in_its_seeds_alone(
    runs: list[FinishedRun],
) -> None:
    arms = group_arms(runs)
    assert sorted(run.record.name for arm in arms for run in arm.runs) == sorted(
        run.record.name for run in runs
    )
    for arm in arms:
        assert arm.seeds == (0, 1)
        assert len({replace(run.record.config, seed=0) for run in arm.runs}) == 1


def test_arms_stand_by_policy_and_glimpse_size_whatever_the_order_of_the_runs(
    runs: list[FinishedRun],
) -> None:
    names = [arm.name for arm in group_arms(runs)]
    assert names == ["expected-g8", "expected-g16", "whole"]
    assert [arm.name for arm in group_arms(runs[::-1])] == names


def test_mean_and_sample_sd_are_over_the_seeds(runs: list[FinishedRun]) -> None:
    for arm in group_arms(runs):
        top1 = [run.evaluation.top1 for run in arm.runs]
        assert arm.top1 == Spread(statistics.fmean(top1), statistics.stdev(top1))


def test_one_seed_has_no_sd() -> None:
    assert spread([73.9]) == Spread(73.9, None)


def test_the_same_seed_twice_is_not_two_seeds(make_run: MakeRun) -> None:
    first, second = make_run("blend-s0", seed=42), make_run("blend-s1", seed=42)
    assert [len(arm.runs) for arm in group_arms([first, second])] == [1, 1]


def test_runs_of_one_name_but_other_options_are_two_arms(make_run: MakeRun) -> None:
    arms = group_arms([make_run("a-s0", seed=0, lr=0.1), make_run("a-s1", seed=1, lr=0.2)])
    assert [arm.name for arm in arms] == ["a", "a (2)"]
    assert differing_options(arms) == ("lr",)


@pytest.mark.parametrize("starts", [("plain-s0", "plain-s1"), ("plain-s0", "plain-s0")])
def test_seeds_may_begin_with_their_own_runs_or_all_with_one(
    starts: tuple[str, str], make_run: MakeRun
) -> None:
    runs = [
        make_run(f"chooser-s{seed}", seed=seed, initial_checkpoint=start)
        for seed, start in enumerate(starts)
    ]
    (arm,) = group_arms(runs)
    assert arm.seeds == (0, 1)


def test_skill_is_0_for_chance_1_for_its_ceiling_and_absent_without_room(make_run: MakeRun) -> None:
    run = make_run("expected-s0", policy="expected", seed=0)

    def skill(ceiling: float, **figures: float) -> float | None:
        return replace(run, evaluation=replace(run.evaluation, **figures)).skill(ceiling)

    assert skill(80.0, top1=40.0, top1_random=40.0) == 0
    assert skill(80.0, top1=80.0, top1_random=40.0) == 1
    assert skill(80.0, top1=50.0, top1_random=40.0) == pytest.approx(0.25)
    assert skill(80.0, top1=80.0, top1_random=80.0) is None
    assert make_run("whole-s0", policy="whole", seed=0).skill(80.0) is None


def test_the_oracle_needs_another_seeds_classifier_and_skill_is_measured_with_it(
    runs: list[FinishedRun],
) -> None:
    arm = group_arms(runs)[0]
    assert arm.top1_oracle is not None
    assert arm.top1_oracle.mean < arm.top1_any_right.mean
    assert arm.skill is not None
    assert arm.any_right_skill is not None
    assert arm.skill != arm.any_right_skill
    first, second = arm.runs
    shared = replace(arm, runs=(first, replace(second, logits=first.logits)))
    bare = replace(arm, runs=(first, replace(second, logits=None)))
    for alone in (replace(arm, runs=(first,)), shared, bare):
        assert (alone.top1_oracle, alone.skill) == (None, None)
        assert alone.any_right_skill is not None


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_symmetric_and_equals_the_binomial_sum(first: int, second: int) -> None:
    number, fewer = first + second, min(first, second)
    chances = [math.comb(number, k) / 2**number for k in range(fewer + 1)]
    p = mcnemar(first, second)
    assert p == mcnemar(second, first)
    assert p == pytest.approx(2 * sum(chances) - chances[-1])
    assert 0 < p <= 1


def test_mcnemar_of_no_difference_is_1_and_of_a_large_split_is_tiny() -> None:
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1
    assert mcnemar(2000, 1000) < 1e-60


def test_a_paired_test_is_over_the_shared_seeds(runs: list[FinishedRun]) -> None:
    small, large, whole = group_arms(runs)
    both = paired_test(large, whole)
    assert both is not None
    assert (both.seeds, both.method) == ((0, 1), "bootstrap over images and seeds")
    assert both.points == pytest.approx(large.top1.mean - whole.top1.mean)
    one = paired_test(large, replace(whole, runs=whole.runs[1:]))
    assert one is not None
    assert (one.seeds, one.method) == ((1,), "McNemar mid-p")
    same = paired_test(small, small)
    assert same is not None
    assert (same.points, same.p) == (0, 1)


def test_a_copy_of_a_run_never_takes_the_place_of_the_original(make_run: MakeRun) -> None:
    first, second = (make_run(f"st-s{seed}", seed=seed) for seed in (0, 1))
    copy = replace(first, folder=Path("a-backup"))
    arms = {arm.name: arm for arm in group_arms([copy, first, second])}
    assert arms["st"].runs == (first, second)
    assert arms["st (2)"].runs == (copy,)


def test_without_logits_there_is_no_paired_test(runs: list[FinishedRun]) -> None:
    small, large, _ = group_arms(runs)
    bare = replace(large, runs=tuple(replace(run, logits=None) for run in large.runs))
    assert paired_test(small, bare) is None


def differences(rng: np.random.Generator, *, seeds_sd: float, shift: float) -> np.ndarray:
    """Draw differences of five seeds on the same 400 images, which are hard alike."""
    images = rng.normal(0, 0.5, 400)
    seeds = rng.normal(shift, seeds_sd, (5, 1))
    drawn = images + seeds + rng.normal(0, 1, (5, 400))
    found: np.ndarray = (drawn > 1).astype(int) - (drawn < -1).astype(int)
    return found


def test_the_crossed_bootstrap_finds_nothing_in_chance_and_a_difference_in_all_seeds() -> None:
    rng = np.random.default_rng(0)
    chance = [crossed_bootstrap(differences(rng, seeds_sd=0.05, shift=0)).p for _ in range(30)]
    assert sum(p < 0.05 for p in chance) <= 2
    assert crossed_bootstrap(differences(rng, seeds_sd=0.05, shift=0.5)).p < 0.001
    one_seed_alone = np.zeros((5, 400), int)
    one_seed_alone[2, :200] = 1
    assert crossed_bootstrap(one_seed_alone).p > 0.05


def test_the_crossed_bootstrap_is_the_same_from_either_side() -> None:
    found = differences(np.random.default_rng(1), seeds_sd=0.1, shift=0.1)
    one, other = crossed_bootstrap(found), crossed_bootstrap(-found)
    assert one.p == pytest.approx(other.p, abs=0.02)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.005)


def test_chances_between_right_and_wrong_are_tested_by_a_bootstrap_that_finds_no_more() -> None:
    rng = np.random.default_rng(2)
    tests = []
    for _ in range(40):
        chance_N = rng.integers(0, 7, 100) / 6  # of a random crop of six
        drawn_N = rng.random(100) < chance_N  # a choice that is one more random crop
        tests.append(compare_differences({0: torch.from_numpy(drawn_N - chance_N)}))
    assert {test.method for test in tests} == {"bootstrap over images"}
    assert sum(test.p < 0.05 for test in tests) <= 5
    always = torch.from_numpy(1 - rng.integers(0, 7, 100) / 6)
    assert compare_differences({0: always}).p < 0.001
    even = torch.tensor([2 / 3, -1 / 3, -1 / 3] * 30, dtype=torch.float64)
    assert compare_differences({0: even}).p > 0.9


@pytest.mark.parametrize(
    ("freedom", "t", "p"),
    [(1, 12.706, 0.05), (2, 4.303, 0.05), (3, 3.182, 0.05), (4, 4.604, 0.01), (9, 2.262, 0.05),
     (10, 2.228, 0.05)],
)  # fmt: skip
def test_the_paired_t_is_the_one_of_the_books(freedom: int, t: float, p: float) -> None:
    drawn = np.random.default_rng(freedom).normal(size=freedom + 1)
    scaled = (drawn - drawn.mean()) / drawn.std(ddof=1) + t / math.sqrt(freedom + 1)
    assert paired_t(scaled) == pytest.approx(p, abs=1e-4)
    assert paired_t(-scaled) == pytest.approx(p, abs=1e-4)
    assert paired_t(np.zeros(freedom + 1)) is None
    assert paired_t(np.full(freedom + 1, 1 / 120)) is None


def test_two_seeds_that_differ_convince_a_bootstrap_over_them_but_not_the_paired_t() -> None:
    found = np.zeros((2, 2000))
    found[0, :40], found[1, :200] = 1, 1
    test = compare_differences(dict(enumerate(torch.from_numpy(found))))
    assert test.p < 0.001
    assert test.p_over_seeds is not None
    assert test.p_over_seeds == pytest.approx(1 - 2 / math.pi * math.atan(6 / 4))
    assert test.in_words.endswith(f"; paired t over the seeds: p = {test.p_over_seeds:.3f}")
    alone = compare_differences({0: torch.from_numpy(found[0])})
    assert alone.p_over_seeds is None
    assert "paired t" not in alone.in_words


def test_fewer_than_four_seeds_are_said_to_be_few() -> None:
    assert few_seeds(2).startswith("2 seeds are few: a bootstrap underestimates their sd by 29 %")
    assert few_seeds(3).startswith("3 seeds are few: a bootstrap underestimates their sd by 18 %")
    assert few_seeds(1).startswith("One seed: p is over images only")
    assert few_seeds(4) == few_seeds(5) == ""


def test_half_the_interval_is_the_least_difference_that_could_have_been_shown() -> None:
    def tested(only_first: int, only_second: int, alike: int) -> PairedTest:
        found = [1] * only_first + [-1] * only_second + [0] * alike
        return compare_differences({0: torch.tensor(found, dtype=torch.float64)})

    even = tested(10, 10, 180)
    assert even.least_shown == pytest.approx((even.high - even.low) / 2)
    assert even.least_shown == pytest.approx(100 * 1.96 * math.sqrt(20) / 200, abs=0.3)
    assert tested(25, 5, 170).p < 0.05
    assert tested(25, 5, 170).points > even.least_shown
    never = tested(0, 0, 200)
    assert (never.p, never.low, never.high, never.least_shown) == (1, 0, 0, 2.5)
    assert tested(5, 0, 195).p < 0.05 < tested(4, 0, 196).p


def test_the_best_arm_has_the_highest_mean(runs: list[FinishedRun]) -> None:
    arms = group_arms(runs)
    best = best_arm(arms)
    assert best is not None
    assert best.top1.mean == max(arm.top1.mean for arm in arms)
    assert best_arm([]) is None
