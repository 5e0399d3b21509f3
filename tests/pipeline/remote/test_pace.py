import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.remote import pace
from pipeline.remote.pace import START_AT_ONCE, Link, Reading, num_at_once

MIB = 2**20


class Clock:
    """Stands in for the module `time`, and passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("wanted_mib_s", "latency_s", "mib_s", "expected"),
    [
        (10, 0.2, 20, 2),  # 6 MiB under way: one block of 8, and one more
        (39, 0.2, 20, 4),  # 23.4 MiB under way
        (40, 2.0, 20, 13),  # 96 MiB under way
        (40, 0.0, 1000, 2),
        (400, 0.2, 20, 15),  # the limit
        (math.inf, 0.2, 20, 15),
    ],
)
def test_as_many_blocks_are_under_way_as_keep_up_by_littles_law(
    wanted_mib_s: float, latency_s: float, mib_s: float, expected: int
) -> None:
    number = num_at_once(
        wanted_bytes_s=wanted_mib_s * MIB, latency_s=latency_s, s_per_byte=1 / (mib_s * MIB),
        part_bytes=8 * MIB, limit=15,
    )  # fmt: skip
    assert number == expected


RATES = st.floats(0, 1e12) | st.just(math.inf)


@given(
    wanted=RATES, latency_s=st.floats(0, 100), s_per_byte=st.floats(0, 1),
    part_bytes=st.floats(1, 1e10), limit=st.integers(1, 16),
)  # fmt: skip
def test_the_number_is_in_its_range_and_grows_with_rate_and_latency(
    wanted: float, latency_s: float, s_per_byte: float, part_bytes: float, limit: int
) -> None:
    def number(wanted_bytes_s: float, latency_s: float) -> int:
        return num_at_once(
            wanted_bytes_s=wanted_bytes_s, latency_s=latency_s, s_per_byte=s_per_byte,
            part_bytes=part_bytes, limit=limit,
        )  # fmt: skip

    found = number(wanted, latency_s)
    assert 1 <= found <= limit
    assert number(2 * wanted, latency_s) >= found
    assert number(wanted, 2 * latency_s) >= found


def test_a_link_measures_the_connections_that_ended_last() -> None:
    link = Link()
    assert not link.is_measured
    for number in range(40):
        is_old = number < 40 - pace.RECENT
        link.note(latency_s=9.0 if is_old else 0.25, num_bytes=100, seconds=50 if is_old else 2)
    assert link.num_bytes == 4000
    assert (link.latency_s, link.s_per_byte) == (0.25, 0.02)
    assert not pickle.loads(pickle.dumps(link)).is_measured  # noqa: S301 - another process's own


def test_a_reader_wants_what_it_takes_while_it_does_not_wait(clock: Clock) -> None:
    reading = Reading()
    clock.now_s += 1000.0  # what lies between passes
    reading.begin()
    assert reading.wanted_bytes_s == math.inf
    for _ in range(4):
        with reading.waiting():
            clock.now_s += 3.0
        clock.now_s += 0.5
        reading.take(100)
    reading.begin_wait()
    clock.now_s += 7.0  # a wait that goes on is no work
    assert reading.wanted_bytes_s == 200.0
    assert reading.waited_s == 12.0
    reading.end_wait()
    reading.end_wait()
    assert reading.waited_s == 19.0


def test_before_anything_is_measured_a_few_are_fetched_at_once(clock: Clock) -> None:
    reading, link = Reading(), Link()
    assert reading.num_at_once(None, part_bytes=8.0, limit=9) == 1  # files of this machine
    assert reading.num_at_once(link, part_bytes=8.0, limit=9) == START_AT_ONCE
    assert reading.num_at_once(link, part_bytes=8.0, limit=2) == 2
    link.note(latency_s=0.5, num_bytes=8, seconds=0.5)
    assert reading.num_at_once(link, part_bytes=8.0, limit=9) == START_AT_ONCE  # none was used
    clock.now_s += 1.0
    reading.take(40)  # 5 parts a second, each under way for a second
    assert reading.num_at_once(link, part_bytes=8.0, limit=9) == 6
