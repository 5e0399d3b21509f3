import io
import json
import platform
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reported import Reported
from rich.console import Console

from pipeline.command import results
from pipeline.command.results import Contender, Difference, Row, Turn
from pipeline.common.cpus import num_usable
from pipeline.common.progress import SILENT
from pipeline.pixels import Pixels

NONE = Difference(mean=0.0, p999=0, largest=0)


ROWS = [
    Row(name="old", rates=(100.0, 300.0, 110.0), median=110.0),
    Row(name="limit", rates=(2200.0,), median=2200.0, ratios={"old": 20.0}),
    Row(
        name="new",
        rates=(1000.0, 1100.0, 1500.0),
        median=1100.0,
        ratios={"old": 10.0, "limit": 0.5},
        differences={"canvas": NONE, "glimpses": Difference(mean=0.25, p999=1, largest=3)},
    ),
    Row(name="odd", problem="not installed: make it", figures={"kB a sample": 363.04}),
]


def arrays(seed: int, num_values: int, most: int) -> tuple[Pixels, Pixels]:
    """Two arrays that differ by up to `most`; far more often by little than by much."""
    rng = np.random.default_rng(seed)
    theirs = rng.integers(0, 256, num_values, np.uint8)
    steps = np.round(rng.uniform(-1, 1, num_values) ** 9 * most).astype(int)
    return (theirs + steps).clip(0, 255).astype(np.uint8), theirs


@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.integers(1, 4000), min_size=1, max_size=4),
    most=st.integers(0, 255),
)
@example(seed=0, shapes=[1000], most=255)
def test_a_difference_is_the_mean_the_maximum_and_what_all_but_a_thousandth_keep_to(
    seed: int, shapes: list[int], most: int
) -> None:
    pairs = [arrays(seed + number, size, most) for number, size in enumerate(shapes)]
    found = results.difference(iter(pairs))
    off = np.concatenate([np.abs(ours.astype(int) - theirs) for ours, theirs in pairs])
    assert found.mean == pytest.approx(np.mean(off), rel=1e-12)
    assert found.largest == np.max(off)
    keep = [step for step in range(256) if 1000 * np.sum(off <= step) >= 999 * off.size]
    assert found.p999 == keep[0]


def test_equal_arrays_differ_by_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    assert results.difference([(image, image.copy()), (image[0], image[0])]) == NONE


def test_black_and_white_differ_by_255_whoever_comes_first() -> None:
    black, white = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    expected = Difference(mean=255.0, p999=255, largest=255)
    assert results.difference([(black, white)]) == expected
    assert results.difference([(white, black)]) == expected


@pytest.mark.parametrize(("num_values", "p999"), [(1000, 0), (999, 9)])
def test_one_value_in_a_thousand_is_left_out_and_not_one_more(num_values: int, p999: int) -> None:
    ours = np.zeros(num_values, np.uint8)
    theirs = ours.copy()
    theirs[5] = 9
    assert results.difference([(ours, theirs)]) == Difference(
        mean=9 / num_values, p999=p999, largest=9
    )


def counted(name: str, calls: list[str], *, fails_at: int = 99) -> Callable[[], Turn]:
    """Measure 0.0 at first, 1.0 then, and so on."""

    def measure() -> Turn:
        calls.append(name)
        number = calls.count(name) - 1
        if number == fails_at:
            return Turn(problem="gone")
        return Turn(float(number), {"CPU": 10.0 * number})

    return measure


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_contender_warms_up_and_then_has_its_turn_in_every_round(rounds: int) -> None:
    calls: list[str] = []
    progress = Reported(lambda done: told.append((done, len(calls))))
    told: list[tuple[int, int]] = []
    contenders = [
        Contender(row=Row(name="a", differences={"canvas": NONE}), measure=counted("a", calls)),
        Contender(
            row=Row(name="b", figures={"kB": 7.0}), measure=counted("b", calls), against=("a", "x")
        ),
        Contender(row=Row(name="c"), measure=counted("c", calls), against=("b", "a")),
    ]
    rows = results.interleave(contenders, rounds=rounds, progress=progress)
    assert calls == ["a", "b", "c"] * (rounds + 1)
    rates = tuple(
        float(number) for number in range(1, rounds + 1)
    )  # 0.0, the warm-up, is not there
    median = (rounds + 1) / 2
    assert [row.name for row in rows] == ["a", "b", "c"]
    for row in rows:
        assert (row.rates, row.median, row.figures["CPU"]) == (rates, median, 10 * median)
    assert [row.ratios for row in rows] == [{}, {"a": 1.0}, {"b": 1.0, "a": 1.0}]
    assert rows[0].differences == {"canvas": NONE}
    assert rows[1].figures == {"kB": 7.0, "CPU": 10 * median}
    total = 3 * (rounds + 1)
    assert told == [(done, done) for done in range(total + 1)]
    assert {of for _, _, of in progress.calls} == {total}


def test_a_contender_with_a_problem_has_no_more_turns_and_no_figures() -> None:
    calls: list[str] = []
    contenders = [
        Contender(row=Row(name="a"), measure=counted("a", calls), against=("b",)),
        Contender(row=Row(name="b"), measure=counted("b", calls, fails_at=1)),
        Contender(row=Row(name="c", problem="missing"), measure=counted("c", calls)),
    ]
    rows = results.interleave(contenders, rounds=3, progress=SILENT)
    assert calls == ["a", "b", "a", "b", "a", "a"]
    assert [row.problem for row in rows] == [None, "gone", "missing"]
    assert [row.median for row in rows] == [2.0, None, None]
    assert rows[0].ratios == {}


@pytest.mark.parametrize(("rates", "median"), [((5, 900, 1), 5), ((4, 900, 1, 6), 5)])
def test_a_rows_rate_is_the_median_of_its_rounds(rates: tuple[float, ...], median: float) -> None:
    assert results.with_medians(Row(name="x"), [Turn(rate) for rate in rates]).median == median


def test_a_figure_that_some_turns_lack_is_the_median_of_the_others() -> None:
    turns = [Turn(1.0, {"CPU": 3.0}), Turn(1.0), Turn(1.0, {"CPU": 5.0})]
    assert results.with_medians(Row(name="x"), turns).figures == {"CPU": 4.0}


def shown(rows: list[Row]) -> list[str]:
    screen = io.StringIO()
    console = Console(file=screen, width=200, markup=False, highlight=False)
    console.print(results.to_table(rows, unit="images/s"))
    return [" ".join(line.split()) for line in screen.getvalue().splitlines()]


def test_a_table_numbers_its_rows_and_has_a_column_for_whatever_any_of_them_holds() -> None:
    assert shown(ROWS) == [
        "row what images/s compared kB a sample off the reference: mean, 99.9 %, max problem",
        "1 old 110 - - - -",
        "2 limit 2,200 20.00 x row 1 - - -",
        "3 new 1,100 10.00 x row 1, 0.50 x row 2 - canvas 0, 0, 0; glimpses 0.25, 1, 3 -",
        "4 odd - - 363 - not installed: make it",
    ]
    assert shown(ROWS[:1]) == ["row what images/s", "1 old 110"]


def test_labels_stand_in_place_of_the_name() -> None:
    row = Row(name="x", labels={"gives": "crops", "loader": "ours: raw"}, median=7.254)
    assert shown([row]) == ["row gives loader images/s", "1 crops ours: raw 7.25"]


def test_figures_for_programs_hold_every_round_and_every_ratio() -> None:
    figures = results.to_json(ROWS, setting={"images": 12})
    assert figures["setting"] == {"images": 12}
    assert figures["rows"][2] == {
        "name": "new",
        "labels": {},
        "problem": None,
        "rates": (1000.0, 1100.0, 1500.0),
        "median": 1100.0,
        "ratios": {"old": 10.0, "limit": 0.5},
        "figures": {},
        "differences": {
            "canvas": {"mean": 0.0, "p999": 0, "largest": 0},
            "glimpses": {"mean": 0.25, "p999": 1, "largest": 3},
        },
    }


def test_rows_come_back_from_json_as_they_were() -> None:
    off = arrays(0, 5000, 40)
    made = Row(name="made", differences={"canvas": results.difference([off])})
    text = json.dumps(results.to_json([*ROWS, made], setting={}), allow_nan=False)
    assert results.rows_from_json(text) == [*ROWS, made]


def test_the_machine_is_named_with_the_figures() -> None:
    machine = results.to_json(ROWS, setting={})["machine"]
    assert machine["cpu"]
    assert machine["cores"] == num_usable()
    assert machine["system"] == platform.platform()
    assert machine["python"] == platform.python_version()
    assert set(machine) == {"cpu", "cores", "system", "python", "numba"}
