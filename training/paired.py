"""Whether two arms differ on the same images by more than chance.

Axes: N samples of the validation split.
"""

from typing import NamedTuple

from training.figures import Arm
from training.table import final_prediction


class PairedTest(NamedTuple):
    """Two runs of one seed on the same images.

    `only_first` and `only_second` count the images that one of them alone has right; `p` is
    two-sided.
    """

    seed: int
    only_first: int
    only_second: int
    p: float


def paired_tests(first: Arm, second: Arm) -> tuple[PairedTest, ...]:
    """Test two arms image by image, once for each seed that both have a table of."""
    others = {run.record.config.seed: run.table for run in second.runs}
    tests = []
    for run in first.runs:
        seed, ours = run.record.config.seed, run.table
        theirs = others.get(seed)
        if ours is None or theirs is None or not ours.labels_N.equal(theirs.labels_N):
            continue
        right_N = final_prediction(ours, first.policy) == ours.labels_N
        other_N = final_prediction(theirs, second.policy) == theirs.labels_N
        only_first, only_second = int((right_N & ~other_N).sum()), int((other_N & ~right_N).sum())
        tests.append(PairedTest(seed, only_first, only_second, mcnemar(only_first, only_second)))
    return tuple(tests)


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
