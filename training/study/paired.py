"""Paired tests: whether two arms differ on the same images by more than chance.

Axes: S seeds, N samples of the validation split, D kinds of them, T times that they are drawn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.score.metrics import final_hits
from training.study.finished import Arm

BOOTSTRAPS = 10_000
EQUAL = 1e-12  # of differences of shares: what rounding leaves
BOOTSTRAP_SEED = 0
ENOUGH_SEEDS = 4  # for a bootstrap over them
DRAWN_AT_ONCE = 500  # of the draws
COVERED = (2.5, 97.5)  # percentiles between which 95 % of the draws lie
LEAST_IMAGES = 5  # fewer that one side alone has right give no mid-p below 0.05, whoever has them


@dataclass(frozen=True)
class PairedTest:
    """Two arms on the same images.

    `seeds`: those for which both arms have logits.
    `points`: top-1 of the first minus that of the second; `low` and `high` end its 95 % bootstrap
    interval.
    `p`: two-sided, by `method`: McNemar's for one seed where both sides are right or wrong, else
    the bootstrap over images and seeds.
    `p_over_seeds`: paired t over the seeds; None for one seed, or where all differences are equal.
    `least_shown`: the smallest difference that can be distinguished from chance, points; see
    `least_difference`.
    """

    seeds: tuple[int, ...]
    points: float
    p: float
    method: str
    low: float
    high: float
    least_shown: float
    p_over_seeds: float | None

    def times(self, count: int) -> "PairedTest":
        """Multiply each p by the number of sides that one was picked from (Bonferroni)."""
        t = None if self.p_over_seeds is None else min(1.0, count * self.p_over_seeds)
        return replace(self, p=min(1.0, count * self.p), p_over_seeds=t)

    @property
    def in_words(self) -> str:
        """The tests and their p in words."""
        text = f"{self.method}, {name_seeds(self.seeds)}: p {write_p(self.p)}"
        if self.p_over_seeds is None:
            return text
        return f"{text}; paired t over the seeds: p {write_p(self.p_over_seeds)}"


def few_seeds(count: int) -> str:
    """Warn of few seeds; empty where there are enough.

    Draws of S seeds have (S - 1) / S of the variance that the seeds have: of 2, 3 and 4 an sd that
    is 29, 18 and 13 % too small. The t accounts for that.
    """
    if count >= ENOUGH_SEEDS:
        return ""
    if count == 1:
        return "One seed: p is over images only, and another seed changes every figure."
    return (
        f"{count} seeds are few: a bootstrap underestimates their sd by "
        f"{100 * (1 - math.sqrt(1 - 1 / count)):.0f} %, so check the paired t over the seeds too, "
        f"or run {ENOUGH_SEEDS} seeds or more."
    )


def name_seeds(seeds: Sequence[int]) -> str:
    """Write `seed 42`, or `seeds 0, 1`."""
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def write_p(p: float) -> str:
    """Write `= 0.012`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def paired_test(first: Arm, second: Arm) -> PairedTest | None:
    """Test two arms image by image; None where no seed has both tables."""
    others = {run.record.config.seed: run.logits for run in second.runs}
    differences = {}
    for run in first.runs:
        seed, ours = run.record.config.seed, run.logits
        theirs = others.get(seed)
        if ours is None or theirs is None or not ours.labels_N.equal(theirs.labels_N):
            continue
        differences[seed] = final_hits(ours, first.policy) - final_hits(theirs, second.policy)
    return compare_differences(differences) if differences else None


def compare_differences(differences: Mapping[int, Tensor]) -> PairedTest:
    """Test whether the mean of differences can be zero.

    Args:
        differences: One array a seed, float64 `(N,)`: 1 where only the first is right, -1 where
            only the second is, 0 elsewhere; in between where a side is right by a probability.
    """
    differences_SN = torch.stack(list(differences.values())).numpy()
    num_seeds, num_samples = differences_SN.shape
    drawn = crossed_bootstrap(differences_SN)
    p, method = drawn.p, f"bootstrap over images{' and seeds' if num_seeds > 1 else ''}"
    if num_seeds == 1 and not (differences_SN % 1).any():
        only_first, only_second = (int((differences_SN == sign).sum()) for sign in (1, -1))
        p, method = mcnemar(only_first, only_second), "McNemar mid-p"
    return PairedTest(
        seeds=tuple(differences),
        points=100 * float(differences_SN.mean()),
        p=p,
        method=method,
        low=100 * drawn.low,
        high=100 * drawn.high,
        least_shown=least_difference(drawn, num_samples),
        p_over_seeds=paired_t(differences_SN.mean(1)) if num_seeds > 1 else None,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the two-sided mid-p value of McNemar's test, exact and without an approximation.

    Args:
        only_first: Images on which only the first is right.
        only_second: Images on which only the second is right.

    Source: Fagerland et al. 2013, The McNemar test for binary matched-pairs data, eq. 4.
    """
    discordant = only_first + only_second
    tail, ways = 0, 1  # ways to deal k of the discordant images to the loser
    for k in range(min(only_first, only_second)):
        tail += ways
        ways = ways * (discordant - k) // (k + 1)
    return float((2 * tail + ways) / 2**discordant)


def paired_t(differences_S: np.ndarray) -> float | None:
    """Give the two-sided p of Student's t that the mean of the seeds' differences is 0.

    It keeps the images fixed: what would other seeds give on these? None where all differences are
    equal: counts of images can agree by chance, and a spread of 0 would claim certainty.

    Args:
        differences_S: Mean difference of each seed, at least two.

    Source: Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    freedom = len(differences_S) - 1
    mean, sd = differences_S.mean(), differences_S.std(ddof=1)
    if sd < EQUAL:
        return None
    angle = math.atan2(abs(mean) * math.sqrt(freedom + 1), sd * math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - within)


class Drawn(NamedTuple):
    """A resampled mean: its two-sided p, and the ends of its 95 % interval."""

    p: float
    low: float
    high: float


def least_difference(drawn: Drawn, num_samples: int) -> float:
    """Give the smallest difference that can be distinguished from chance, points.

    It is half the width of the 95 % interval, and at least `LEAST_IMAGES` images: arms that differ
    on hardly any image have an interval of almost no width, which shows nothing.
    A true difference of this size is found in half of all experiments as large as this one.

    Source: Bloom 1995, Minimum Detectable Effects; his 2.8 standard errors, which are found in
    80 %, are 1.96 here, so that p is below 0.05 where a difference is larger than this.
    """
    return 100 * max((drawn.high - drawn.low) / 2, LEAST_IMAGES / num_samples)


def crossed_bootstrap(differences_SN: np.ndarray) -> Drawn:
    """Resample a mean over seeds and over images.

    Seeds share their images, so neither is nested in the other: both are resampled independently,
    which errs on the side of a larger p.

    Source: Owen 2007, The pigeonhole bootstrap, section 3; percentiles as in Efron and Tibshirani
    1993, An Introduction to the Bootstrap, section 13.3.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    num_seeds, num_samples = differences_SN.shape
    # Images that came out alike with every seed are drawn together: at most 3^S kinds, or a
    # kind for each image where sides are right by a chance, too many for all draws at once.
    kinds_SD, counts_D = np.unique(differences_SN, axis=1, return_counts=True)
    totals_TS = np.concatenate([
        rng.multinomial(num_samples, counts_D / num_samples, size=DRAWN_AT_ONCE) @ kinds_SD.T
        for _ in range(BOOTSTRAPS // DRAWN_AT_ONCE)
    ])  # fmt: skip
    seeds_TS = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=BOOTSTRAPS)
    totals_T = (totals_TS * seeds_TS).sum(1).round(9)  # chances that cancel out sum to 0
    tail = min(int((totals_T <= 0).sum()), int((totals_T >= 0).sum()))
    low, high = map(float, np.percentile(totals_T / differences_SN.size, COVERED))
    return Drawn(min(1.0, 2 * (1 + tail) / (1 + BOOTSTRAPS)), low, high)
