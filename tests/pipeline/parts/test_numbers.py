import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.parts.numbers import MAX_RANGES, parse_numbers, spell_numbers


@given(total=st.integers(0, 50), count=st.integers(1, 70))
def test_every_shard_is_in_exactly_one_part_and_parts_are_equal_but_for_one_shard(
    total: int, count: int
) -> None:
    parts = [parse_numbers(f"{part}/{count}", total) for part in range(1, count + 1)]
    assert [number for part in parts for number in part] == list(range(total))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(numbers=st.sets(st.integers(0, 60), min_size=1))
def test_numbers_are_read_as_they_were_written(numbers: set[int]) -> None:
    in_order = sorted(numbers)
    read = parse_numbers(spell_numbers(in_order), 61)
    assert (read[0], read[-1]) == (in_order[0], in_order[-1])
    assert numbers <= set(read)
    assert len(spell_numbers(in_order).split(",")) <= MAX_RANGES


def test_numbers_are_ranges_joined_by_commas() -> None:
    assert parse_numbers("3, 0-1,1", 4) == (0, 1, 3)
    assert spell_numbers([0, 1, 3]) == "0-1,3"


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1;2", "1/", "/2", "1/2/3", "\u0663"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"such as 0-99,120, or a part such as 3/10; got "):
        parse_numbers(text, 9)


@pytest.mark.parametrize("text", ["9", "0-9", "3,12"])
def test_a_shard_that_the_plan_does_not_have_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^--shards must be of the plan's 9 shards, 0 to 8; got {text}.$"
    ):
        parse_numbers(text, 9)


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/0"])
def test_parts_are_numbered_from_one(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--shards I/N must have I from 1 to N; got {text}. "):
        parse_numbers(text, 9)
