import io
import json
import platform
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reported import Reported
from rich.console import Console

from pipeline.bench import results
from pipeline.bench.results import Contender, Difference, Row
from pipeline.common.cpus import num_usable
from pipeline.pixels import Pixels

NONE = Difference(mean=0.0, p999=0, largest=0)


def row(
    name: str,
    *rates: float,
    against: str | None = None,
    differences: Mapping[str, Difference] | None = None,
) -> Row:
    return Row(name=name, rates=rates, against=against, differences=differences or {})


ROWS = [
    row("old", 100.0, 300.0, 110.0),
    row("limit", 2200.0, 2100.0, 2300.0),
    row(
        "new",
        1000.0,
        1100.0,
        1500.0,
        against="limit",
        differences={"canvas": NONE, "glimpses": Difference(mean=0.25, p999=1, largest=3)},
    ),
    row("odd", 55.0, against="nobody"),
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


def turns(name: str, calls: list[str]) -> Callable[[], float]:
    """Measure 0.0 at first, 1.0 then, and so on."""

    def measure() -> float:
        calls.append(name)
        return float(calls.count(name) - 1)

    return measure


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_contender_warms_up_and_then_has_its_turn_in_every_round(rounds: int) -> None:
    calls: list[str] = []
    progress = Reported(lambda done: told.append((done, len(calls))))
    told: list[tuple[int, int]] = []
    contenders = [
        Contender(name="a", measure=turns("a", calls), differences={"canvas": NONE}),
        Contender(name="b", measure=turns("b", calls), against="a", differences={}),
        Contender(name="c", measure=turns("c", calls), differences={}),
    ]
    rows = results.interleave(
        contenders,
        rounds=rounds,
        progress=progress,
    )
    assert calls == ["a", "b", "c"] * (rounds + 1)
    counted = [float(number) for number in range(1, rounds + 1)]  # 0.0, the warm-up, is not there
    assert rows == [
        row("a", *counted, differences={"canvas": NONE}),
        row("b", *counted, against="a"),
        row("c", *counted),
    ]
    total = 3 * (rounds + 1)
    assert told == [(done, done) for done in range(total + 1)]
    assert {of for _, _, of in progress.calls} == {total}


def test_a_rows_rate_is_the_median_of_its_rounds() -> None:
    assert row("odd", 5.0, 900.0, 1.0).median == 5.0
    assert row("even", 4.0, 900.0, 1.0, 6.0).median == 5.0


def test_a_ratio_is_that_of_medians_and_needs_somebody_who_was_measured() -> None:
    assert results.ratio(ROWS[2], ROWS, "limit") == 0.5
    assert results.ratio(ROWS[2], ROWS, "new") == 1.0
    assert results.ratio(ROWS[2], ROWS, "nobody") is None
    assert results.ratio(ROWS[2], ROWS, None) is None


def test_a_table_numbers_its_rows_and_compares_each_with_the_first_and_with_another() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200, markup=False, highlight=False)
    console.print(results.to_table(ROWS, unit="images/s"))
    heading, *lines = screen.getvalue().splitlines()
    assert " ".join(heading.split()) == (
        "row what images/s x the first x another off the reference: mean, 99.9 %, max"
    )
    assert [" ".join(line.split()) for line in lines] == [
        "1 old 110 1.00 - -",
        "2 limit 2,200 20.00 - -",
        "3 new 1,100 10.00 0.50 of row 2 canvas 0, 0, 0; glimpses 0.25, 1, 3",
        "4 odd 55 0.50 - -",
    ]


def test_figures_for_programs_hold_every_round_and_every_ratio() -> None:
    figures = results.to_json(ROWS, setting={"images": 12})
    assert figures["setting"] == {"images": 12}
    assert figures["rows"][0] == {
        "name": "old",
        "median": 110.0,
        "rates": [100.0, 300.0, 110.0],
        "ratio_to_first": 1.0,
        "against": None,
        "ratio_to_it": None,
        "differences": {},
    }
    assert figures["rows"][2] == {
        "name": "new",
        "median": 1100.0,
        "rates": [1000.0, 1100.0, 1500.0],
        "ratio_to_first": 10.0,
        "against": "limit",
        "ratio_to_it": 0.5,
        "differences": {
            "canvas": {"mean": 0.0, "p999": 0, "largest": 0},
            "glimpses": {"mean": 0.25, "p999": 1, "largest": 3},
        },
    }
    assert figures["rows"][3]["against"] == "nobody"
    assert figures["rows"][3]["ratio_to_it"] is None


def test_rows_come_back_from_json_as_they_were() -> None:
    text = json.dumps(results.to_json(ROWS, setting={}), allow_nan=False)
    assert [results.row_from_json(fields) for fields in json.loads(text)["rows"]] == ROWS


def test_what_was_compared_comes_back_from_json_too() -> None:
    off = arrays(0, 5000, 40)
    made = row("made", 1.0, differences={"canvas": results.difference([off])})
    text = json.dumps(results.to_json([made], setting={}))
    assert [results.row_from_json(fields) for fields in json.loads(text)["rows"]] == [made]


def test_the_machine_stands_beside_the_figures() -> None:
    machine = results.to_json(ROWS, setting={})["machine"]
    assert machine["cpu"]
    assert machine["cores"] == num_usable()
    assert machine["system"] == platform.platform()
    assert machine["python"] == platform.python_version()
    assert set(machine) == {"cpu", "cores", "system", "python", "numba"}
