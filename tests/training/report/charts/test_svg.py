from collections.abc import Callable

import pytest

from training.model.policies import POLICIES
from training.report.charts.accuracy import accuracy_by_macs, study_marks
from training.report.charts.svg import COLOURS, colour_of
from training.study.finished import FinishedRun, group_arms


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_a_colour_and_can_be_drawn(
    policy: str, make_run: Callable[..., FinishedRun]
) -> None:
    (arm,) = group_arms([make_run("run-s0", policy=policy, seed=0)])
    assert colour_of(arm) == COLOURS[policy]
    assert COLOURS[policy].lower() in accuracy_by_macs(study_marks([arm])).lower()


def test_no_two_policies_share_a_colour() -> None:
    assert len({COLOURS[policy] for policy in POLICIES}) == len(POLICIES)
