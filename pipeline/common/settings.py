"""A config's field and its option in one place: default, help text, range and choices.

`check_settings` checks a config; `pipeline.common.options` makes the options. This module does not
know click, so that a library user's config needs none.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pipeline.common.errors import ConfigError

_KEY = "setting"


class Setting(NamedTuple):
    """What `setting` keeps about a field."""

    text: str
    flags: tuple[str, ...]
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    shown: str | None
    multiple: bool


def setting(
    default: Any,
    text: str,
    *,
    flags: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    shown: str | None = None,
    multiple: bool = False,
) -> Any:
    """Make a dataclass field that is also an option.

    Args:
        default: Also the class attribute's value: `BuildConfig.crop_size`.
        text: Help; one sentence, with the unit.
        flags: As typed, separated by spaces, where they are not `--field-name`, such as
            `-j --workers`; a field of type bool gets `--x/--no-x`.
        low: Smallest number accepted; of a tuple, for each.
        high: Largest number accepted.
        choices: Texts accepted; empty accepts all.
        shown: Default in words, for the help, where the value does not say it.
        multiple: Whether the option may be repeated; the field is a tuple of all.
    """
    kept = Setting(text, tuple(flags.split()), low, high, tuple(choices), shown, multiple)
    return dataclasses.field(default=default, metadata={_KEY: kept})


def settings_of(config: Any) -> dict[str, tuple[Setting, Any]]:
    """Give the settings of a config or of its class, with their defaults, by field."""
    return {
        field.name: (field.metadata[_KEY], field.default)
        for field in dataclasses.fields(config)
        if _KEY in field.metadata
    }


def flag_of(config: Any, field: str) -> str:
    """Give a field's long flag as it is typed, such as `--crop-size`."""
    kept, _ = settings_of(config)[field]
    long = [flag for flag in kept.flags if flag.startswith("--")]
    return long[0].partition("/")[0] if long else f"--{field.replace('_', '-')}"


def check_settings(config: Any) -> None:
    """Check every field against its range and its choices.

    A field that is None is not checked: it leaves its option out.

    Raises:
        ConfigError: If one is outside, or is not a number; names its option.
    """
    for name, (kept, _) in settings_of(config).items():
        value, flag = getattr(config, name), flag_of(config, name)
        if value is None:
            continue
        if kept.choices:
            _check_choice(flag, value if kept.multiple else (value,), kept.choices)
        for number in value if isinstance(value, tuple) else (value,):
            if kept.low is not None and not number >= kept.low:  # a NaN too
                raise ConfigError(f"{flag} must be at least {kept.low}; got {number}.")
            if kept.high is not None and not number <= kept.high:
                raise ConfigError(f"{flag} must be at most {kept.high}; got {number}.")


def _check_choice(flag: str, values: Iterable[str], choices: Sequence[str]) -> None:
    for value in values:
        if value not in choices:
            raise ConfigError(f"{flag} must be one of {', '.join(choices)}; got {value!r}.")
