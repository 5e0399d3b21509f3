"""Which shards of a plan are meant: `0-99,120`, or the third of ten parts, `3/10`."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from pipeline.common.errors import ConfigError

MAX_RANGES = 20  # in a command that is to be typed

_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)
_PART = re.compile(r"(\d+)/(\d+)", re.ASCII)


def parse_numbers(text: str, total: int) -> tuple[int, ...]:
    """Read what was typed after --shards.

    Args:
        text: Numbers and ranges of numbers from 0 on, joined by commas; or I/N with I from 1 to N.
            The N parts of a plan are equal but for one shard.
        total: Shards of the plan.

    Returns:
        Numbers of shards, in order; of a part, none if there are more parts than shards.

    Raises:
        ConfigError: If the text means anything else, or a shard that the plan does not have.
    """
    if part := _PART.fullmatch(text):
        number, count = int(part[1]), int(part[2])
        if not 1 <= number <= count:
            raise ConfigError(
                f"--shards I/N must have I from 1 to N; got {text}. The first of {count} parts is "
                f"1/{count}: number the tasks of an array from 1."
            )
        return tuple(range((number - 1) * total // count, number * total // count))
    return tuple(sorted(set(_listed(text, total))))


def _listed(text: str, total: int) -> Iterator[int]:
    for word in text.split(","):
        found = _RANGE.fullmatch(word.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise ConfigError(
                f"--shards must be numbers such as 0-99,120, or a part such as 3/10; got {text!r}."
            )
        if last >= total:
            raise ConfigError(
                f"--shards must be of the plan's {total} shards, 0 to {total - 1}; got {text}."
            )
        yield from range(first, last + 1)


def spell_numbers(numbers: Sequence[int]) -> str:
    """Write numbers, which ascend, as --shards takes them: `0-3,7`.

    Many ranges become one, which holds shards between them as well: finished ones are kept.
    """
    ranges = [f"{first}-{last}" if first < last else f"{first}" for first, last in runs_of(numbers)]
    return ",".join(ranges) if len(ranges) <= MAX_RANGES else f"{numbers[0]}-{numbers[-1]}"


def runs_of(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the first and the last of each run of numbers, which ascend, that follow each other."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]
