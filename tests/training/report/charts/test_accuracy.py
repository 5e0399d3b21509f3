"""The chart of accuracy against compute names what it shows, and its labels do not overlap."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.report.charts.accuracy import accuracy_by_macs, spread_apart, study_marks
from training.study.finished import FinishedRun, group_arms


def test_the_cheapest_arm_need_not_be_the_one_that_is_named(runs: list[FinishedRun]) -> None:
    def costly(run: FinishedRun) -> FinishedRun:
        return replace(run, evaluation=replace(run.evaluation, proposer_macs=10**9))

    small, large, _ = group_arms(runs)
    assert large.top1.mean > small.top1.mean
    dear = replace(large, runs=tuple(map(costly, large.runs)))
    svg = accuracy_by_macs(study_marks([small, dear]))
    assert ">expected-g16<" in svg
    assert ">expected-g8<" not in svg


@given(st.lists(st.floats(0, 100), max_size=12).map(sorted))
def test_labels_are_spread_apart_in_order_and_as_a_whole_stay_where_they_are(
    heights: Sequence[float],
) -> None:
    moved = spread_apart(heights, 3)
    assert len(moved) == len(heights)
    assert all(high - low >= 3 - 1e-9 for low, high in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights))
    assert spread_apart([0, 10, 20], 3) == [0, 10, 20]
