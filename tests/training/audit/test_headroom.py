from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from training.audit.headroom import Headroom, bootstrap, headroom, shown_by
from training.audit.verdict import audit
from training.report.terminal import headroom_text
from training.score.crop_logits import CropLogits
from training.study.finished import FinishedRun, group_arms

CROPS = ("full", "left", "right")
NUM_SAMPLES, NUM_CLASSES = 600, 5


def logits_of(right_NK: NDArray[np.bool_], losses_NK: NDArray[np.float64]) -> CropLogits:
    """A classifier that is right where it is said to be, and loses in the order that is given.

    The class of its mean over the crops is the one that it sees in the first.
    """
    labels_N = torch.arange(len(right_NK)) % NUM_CLASSES
    right = torch.from_numpy(right_NK)
    chance_NK = (-0.8 - 0.4 * torch.from_numpy(losses_NK / losses_NK.max()).float()).exp()
    is_label_NKC = F.one_hot(labels_N, NUM_CLASSES)[:, None].expand(*right_NK.shape, -1)
    # Of the other classes, the next has all the rest where the classifier errs.
    next_NKC = is_label_NKC.roll(1, 2)
    others_NKC = torch.where(right[..., None], (1 - is_label_NKC) / (NUM_CLASSES - 1), next_NKC)
    chances_NKC = torch.where(
        is_label_NKC.bool(), chance_NK[..., None], (1 - chance_NK[..., None]) * others_NKC
    )
    logits = CropLogits(
        labels_N=labels_N,
        logits_NKC=chances_NKC.log(),
        probabilities_NK=torch.full(right_NK.shape, 1 / right_NK.shape[1]),
    )
    vars(logits)["averaged_N"] = logits.predicted_NK[:, 0]
    return logits


def seeing(
    seed: int, *, at_best: float, elsewhere: float, sure: float, best_N: NDArray[np.int64]
) -> CropLogits:
    """A classifier that is right more often on each image's best crop.

    It loses least on that crop with the chance `sure`, and else on any of the three.
    """
    generator = np.random.default_rng(seed)
    is_best_NK = best_N[:, None] == np.arange(3)
    chance_NK = np.where(is_best_NK, at_best, elsewhere)
    least_N = np.where(
        generator.random(len(best_N)) < sure, best_N, generator.integers(3, size=len(best_N))
    )
    losses_NK = 1.0 - (least_N[:, None] == np.arange(3))
    return logits_of(generator.random(chance_NK.shape) < chance_NK, losses_NK)


def places(seed: int, num_samples: int = NUM_SAMPLES) -> NDArray[np.int64]:
    """Where each image's best crop is: on the left for half of them."""
    return np.random.default_rng(seed).choice(3, num_samples, p=(0.2, 0.5, 0.3))


def estimate(
    *, at_best: float, elsewhere: float, sure: float, fitted: str = "left", seed: int = 0
) -> Headroom:
    best_N = places(seed)
    first, second = (
        seeing(seed + each, at_best=at_best, elsewhere=elsewhere, sure=sure, best_N=best_N)
        for each in (1, 2)
    )
    chosen_N = {"left": np.ones_like(best_N), "best": best_N}[fitted]
    return headroom((first, second), CROPS, chosen_N, seed=0)


def test_the_figures_are_what_two_small_classifiers_say() -> None:
    # Image by image, whether the three crops are seen rightly, and what is lost on them.
    first = logits_of(
        np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], bool),
        np.array([[1, 5, 5], [5, 1, 5], [5, 1, 5], [5, 5, 1]], float),
    )
    second = logits_of(
        np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0]], bool),
        np.array([[1, 5, 5], [5, 1, 5], [5, 5, 1], [5, 1, 5]], float),
    )
    found = headroom((first, second), CROPS, np.array([0, 1, 1, 0]), seed=0)
    assert found.top1_crops == (50.0, 62.5, 25.0)
    assert found.top1_random == pytest.approx(100 * 11 / 24)
    # The first is best on `full`, where the second has 1 of 4; the second on `left`: 2 of 4.
    assert found.top1_fixed == 100 * (1 + 2) / 8
    # Some crop is right on all 4, and on all 4.
    assert found.top1_any_right == 100
    # Of the other's least loss, the first has images 0 and 1 right; the second 0, 1 and 2.
    assert found.top1_oracle == 100 * (2 + 3) / 8
    assert found.room.points == pytest.approx(100 * 2 / 8)
    assert found.top1_fitted == 100 * (4 + 3) / 8
    assert found.gain.points == pytest.approx(100 * 4 / 8)
    assert found.top1_largest == 25
    assert found.top1_mean == 100 * (3 + 1) / 8  # of `averaged_N`, the first crop's here


def by_chance(accuracies: tuple[float, float, float], num_samples: int) -> Headroom:
    """Two classifiers that are right on each crop by chance, and know where they are."""
    generator = np.random.default_rng(3)
    rights = [generator.random((num_samples, 3)) < accuracies for _ in range(2)]
    first, second = (logits_of(right_NK, 1.0 - right_NK) for right_NK in rights)
    return headroom((first, second), CROPS, np.zeros(num_samples, int), seed=0)


def test_where_crops_are_right_by_chance_alone_only_hindsight_sees_room() -> None:
    found = by_chance((0.5, 0.5, 0.5), 2000)
    assert found.top1_any_right > 85
    assert found.room.low < 0 < found.room.high
    assert found.verdict.startswith("room: ")
    assert found.verdict.endswith(
        "Choosing is not shown to be worth a training: even that room can be chance, and it is at "
        f"most {found.room.high:.1f} points."
    )


def test_an_oracle_below_the_best_fixed_crop_settles_it() -> None:
    found = by_chance((0.8, 0.4, 0.4), 2000)
    assert found.room.high < 0
    assert found.verdict.endswith(
        "Choosing is not worth a training: even that oracle gains nothing."
    )


def test_room_that_a_proposer_reaches_can_be_worth_it() -> None:
    found = estimate(at_best=0.9, elsewhere=0.5, sure=1.0, fitted="best")
    assert found.gain.low > 5
    assert found.verdict.startswith(f"room: {found.room} vs the best fixed crop, for an oracle")
    assert found.verdict.endswith(f"losses gains {found.gain}. Choosing can be worth it.")


def test_room_for_the_oracle_alone_is_not_said_to_be_worth_it() -> None:
    found = estimate(at_best=0.9, elsewhere=0.5, sure=1.0, fitted="left")
    assert found.room.low > 5
    assert (found.gain.points, found.gain.low, found.gain.high) == (0, 0, 0)
    assert "so none of it is shown to be in reach. Choosing is not shown to be worth a" in (
        found.verdict
    )


def test_classifiers_that_guess_are_said_to_have_learnt_too_little_to_tell() -> None:
    found = estimate(at_best=1 / NUM_CLASSES, elsewhere=1 / NUM_CLASSES, sure=1.0)
    assert found.learnt.low < 0 < found.learnt.high
    assert found.verdict.startswith(
        "No answer: the small classifiers have learnt too little. The mean of all crops is right "
        f"on {found.top1_mean:.1f} % of the images vs 20.0 % for always naming the largest class; "
        "its 95 % interval must start at 28.0 % or more. Raise --epochs or --limit, or "
    )


def test_classifiers_that_know_hardly_more_than_chance_are_not_asked_of_room() -> None:
    found = estimate(at_best=0.29, elsewhere=0.27, sure=1.0)
    assert found.learnt.low > 0
    assert found.verdict.startswith("No answer: ")


def test_naming_the_largest_class_always_is_no_knowledge() -> None:
    labels_N = torch.tensor([0] * 80 + [1] * 20)
    first_NKC = F.one_hot(torch.zeros(100, 3, dtype=torch.int64), 2).float()
    logits = CropLogits(
        labels_N=labels_N, logits_NKC=first_NKC, probabilities_NK=torch.full((100, 3), 1 / 3)
    )
    found = headroom((logits, logits), CROPS, np.zeros(100, int), seed=0)
    assert found.top1_mean == found.top1_largest == 80
    assert found.verdict.startswith("No answer: ")


def test_the_interval_covers_the_known_room_as_often_as_it_says() -> None:
    at_best, elsewhere, sure, num_samples = 0.9, 0.5, 0.7, 300
    rises = sure + (1 - sure) / 3  # how often the other classifier's crop is the best one
    truth = 100 * (rises - 0.5) * (at_best - elsewhere)  # `left` is the best one for a half
    covered = 0
    for seed in range(0, 180, 3):
        best_N = places(seed, num_samples)
        first, second = (
            seeing(seed + each, at_best=at_best, elsewhere=elsewhere, sure=sure, best_N=best_N)
            for each in (1, 2)
        )
        found = headroom((first, second), CROPS, best_N, seed=seed)
        covered += found.room.low <= truth <= found.room.high
    assert covered >= 52  # 57 of 60 are expected, with a standard deviation of 1.7


def test_the_interval_of_a_normal_mean_is_the_one_of_the_books() -> None:
    values = np.random.default_rng(0).normal(0.1, 1.0, 4000)
    (gain,) = bootstrap(values[:, None], seed=0)
    half_width = 100 * 1.96 * values.std() / np.sqrt(4000)
    assert gain.points == pytest.approx(100 * values.mean())
    assert gain.low == pytest.approx(gain.points - half_width, abs=0.3)
    assert gain.high == pytest.approx(gain.points + half_width, abs=0.3)


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_trainings_that_choose_are_shown_beside_it(
    make_run: Callable[..., FinishedRun],
) -> None:
    seeds = [make_run(f"st-s{seed}", policy="straight-through", seed=seed) for seed in (0, 1)]
    other = make_run("random-s0", policy="random")
    arms = group_arms([*seeds, other])
    (shown,) = shown_by(arms)
    told = audit(arms[0], ())
    assert (shown.arm, shown.seeds) == ("st", (0, 1))
    assert shown.crops == seeds[0].evaluation.crops
    assert shown.chosen == arms[0].top1
    assert shown.fixed == arms[0].top1_fixed
    assert (shown.oracle, shown.any_right) == (told.oracle, told.any_right)
    assert shown_by(group_arms(seeds[:1]))[0].oracle is None
    assert shown_by(group_arms([replace(seeds[0], logits=None)])) == []


def test_the_text_begins_with_the_verdict_and_ends_with_what_training_showed(
    make_run: Callable[..., FinishedRun],
) -> None:
    found = estimate(at_best=0.9, elsewhere=0.5, sure=1.0)
    run = make_run("st-s0", policy="straight-through", seed=0)
    shown = shown_by(group_arms([run]))
    lines = headroom_text(found, shown).splitlines()
    assert lines[0] == found.verdict
    assert any(
        line.startswith("  room: the oracle above the best fixed crop")
        and line.endswith(f"{found.room.low:+.1f} to {found.room.high:+.1f}")
        for line in lines
    )
    others = ", ".join(run.evaluation.crops)
    assert f"what training showed: st, seed 0 among other crops, {others}" in lines
    assert lines[-1].startswith("  any crop right, known only in hindsight")
