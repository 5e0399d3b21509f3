"""Whether two arms differ on the same images by more than chance.

Axes: S seeds, N samples of the validation split, D kinds of them, T times that they are drawn.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.figures import Arm
from training.table import final_prediction

BOOTSTRAPS = 10_000
BOOTSTRAP_SEED = 0


class PairedTest(NamedTuple):
    """Two arms on the same images.

    `seeds` are those that both have a table of. `points` is what the first has above the second,
    %. `p` is two-sided: McNemar's for one seed, else of a bootstrap over images and seeds.
    """

    seeds: tuple[int, ...]
    points: float
    p: float

    @property
    def method(self) -> str:
        """What the p is from, for people."""
        one = len(self.seeds) == 1
        return "McNemar mid-p" if one else "bootstrap over images and seeds"

    @property
    def told(self) -> str:
        """Say what was tested and how it came out, for people."""
        return f"{self.method}, {name_seeds(self.seeds)}: p {write_p(self.p)}"


def name_seeds(seeds: Sequence[int]) -> str:
    """Write `seed 42`, or `seeds 0, 1`."""
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def write_p(p: float) -> str:
    """Write `= 0.012`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def paired_test(first: Arm, second: Arm) -> PairedTest | None:
    """Test two arms image by image; None where no seed has both tables."""
    others = {run.record.config.seed: run.table for run in second.runs}
    differences = {}
    for run in first.runs:
        seed, ours = run.record.config.seed, run.table
        theirs = others.get(seed)
        if ours is None or theirs is None or not ours.labels_N.equal(theirs.labels_N):
            continue
        right_N = final_prediction(ours, first.policy) == ours.labels_N
        other_N = final_prediction(theirs, second.policy) == theirs.labels_N
        differences[seed] = right_N.int() - other_N.int()
    return compare_differences(differences) if differences else None


def compare_differences(differences: Mapping[int, Tensor]) -> PairedTest:
    """Test whether the mean of differences can be zero.

    Args:
        differences: Of each seed, int `(N,)`: 1 where the first alone is right, -1 where the
            second alone is, 0 elsewhere.
    """
    differences_SN = torch.stack(list(differences.values())).numpy()
    points = 100 * float(differences_SN.mean())
    if len(differences_SN) == 1:
        ours, theirs = (int((differences_SN == sign).sum()) for sign in (1, -1))
        return PairedTest(tuple(differences), points, mcnemar(ours, theirs))
    return PairedTest(tuple(differences), points, crossed_bootstrap(differences_SN))


def mcnemar(only_first: int, only_second: int) -> float:
    """Give the two-sided mid-p value of McNemar's test, exact and without an approximation.

    Args:
        only_first: Images that the first alone has right.
        only_second: Images that the second alone has right.

    Source: Fagerland et al. 2013, The McNemar test for binary matched-pairs data, eq. 4.
    """
    discordant = only_first + only_second
    tail, ways = 0, 1  # ways to deal k of the discordant images to the loser
    for k in range(min(only_first, only_second)):
        tail += ways
        ways = ways * (discordant - k) // (k + 1)
    return float((2 * tail + ways) / 2**discordant)


def crossed_bootstrap(differences_SN: np.ndarray) -> float:
    """Give the two-sided p of a mean over seeds and images, both of which chance has drawn.

    Seeds share their images, so neither is drawn within the other: both are drawn anew, each by
    itself, which errs on the side of a larger p.

    Source: Owen 2007, The pigeonhole bootstrap, section 3.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    num_seeds, num_samples = differences_SN.shape
    # Images that came out alike with every seed are drawn together: at most 3^S kinds.
    kinds_SD, counts_D = np.unique(differences_SN, axis=1, return_counts=True)
    images_TD = rng.multinomial(num_samples, counts_D / num_samples, size=BOOTSTRAPS)
    seeds_TS = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=BOOTSTRAPS)
    totals_T = (images_TD @ kinds_SD.T * seeds_TS).sum(1)
    tail = min(int((totals_T <= 0).sum()), int((totals_T >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + BOOTSTRAPS))
