"""A config's field and its option in one place: default, help text, range and choices.

`check_settings` checks a config; `pipeline.command.options` makes the options. This module does not
import click: a config works without it.
"""

import ast
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pipeline.common.errors import ConfigError

_KEY = "setting"


class Setting(NamedTuple):
    """A field's metadata."""

    text: str
    flags: tuple[str, ...]
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    shown: str | None
    multiple: bool
    bare: str | None


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
    bare: str | None = None,
) -> Any:
    """Make a dataclass field that is also an option.

    Args:
        default: Default; also the class attribute, as in `BuildConfig.crop_size`.
        text: Help text: one sentence, with the unit.
        flags: Flags separated by spaces, if not `--field-name`, for example `-j --workers`; a bool
            gets `--x/--no-x`.
        low: Smallest number accepted; of a tuple, for each.
        high: Largest number accepted.
        choices: Texts accepted; empty accepts all.
        shown: Default in words, for the help.
        multiple: Whether the option may be repeated; the field is a tuple of all.
        bare: Value where the flag is typed without one; None requires one.
    """
    kept = Setting(text, tuple(flags.split()), low, high, tuple(choices), shown, multiple, bare)
    return dataclasses.field(default=default, metadata={_KEY: kept})


def like(config: Any, field: str, **changed: Any) -> Any:
    """Make a field like that of another config, for an option that two commands share.

    Args:
        config: A class whose fields are made by `setting`.
        field: Name of a field of that class.
        changed: Its `default`, and what else of a `Setting` differs.
    """
    kept, default = settings_of(config)[field]
    default = changed.pop("default", default)
    return dataclasses.field(default=default, metadata={_KEY: kept._replace(**changed)})


def settings_of(config: Any) -> dict[str, tuple[Setting, Any]]:
    """Return the settings of a config or its class, with their defaults, by field."""
    return {
        field.name: (field.metadata[_KEY], field.default)
        for field in dataclasses.fields(config)
        if _KEY in field.metadata
    }


def flag_of(config: Any, field: str) -> str:
    """Return a field's long flag, for example `--crop-size`."""
    kept, _ = settings_of(config)[field]
    long = [flag for flag in kept.flags if flag.startswith("--")]
    return long[0].partition("/")[0] if long else f"--{field.replace('_', '-')}"


def check_settings(config: Any) -> None:
    """Check every field that is not None against its range and its choices.

    Raises:
        ConfigError: If a value is outside, or not a number; names its option.
    """
    for name, (kept, _) in settings_of(config).items():
        value, flag = getattr(config, name), flag_of(config, name)
        if value is None or (kept.multiple and not value):
            continue
        if kept.choices:
            _check_choice(flag, value if kept.multiple else (value,), kept)
        check_range(flag, value, kept.low, kept.high)


def check_range(flag: str, value: Any, low: float | None, high: float | None) -> None:
    """Check a number, or each of several; None, which leaves an option out, is accepted.

    Raises:
        ConfigError: If one is outside, or is not a number.
    """
    if value is None:
        return
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers or (() if low is None else (0,)):
        if low is not None and not number >= low:  # a NaN too
            raise ConfigError(f"{flag} must be at least {low}; got {number}.")
        if high is not None and not number <= high:
            raise ConfigError(f"{flag} must be at most {high}; got {number}.")


def _check_choice(flag: str, values: Iterable[str], kept: Setting) -> None:
    for value in values:
        if value not in kept.choices:
            raise ConfigError(f"{flag} must be one of {', '.join(kept.choices)}; got {value!r}.")


def named_values(flag: str, words: Iterable[str]) -> dict[str, Any]:
    """Read NAME=VALUE as timm does: a value is a Python literal, or else a text.

    Args:
        flag: The option that they were typed after.
        words: As they were typed.

    Raises:
        ConfigError: If one is of another form, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()) or name in values:
            raise ConfigError(
                f"{flag} must be NAME=VALUE, and each name once; got {word!r}. Correct it, or "
                "leave it out."
            )
        try:
            values[name] = ast.literal_eval(text)
        except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
            values[name] = text
    return values


def not_taken(flag: str, words: Iterable[str], taker: str, error: Exception) -> ConfigError:
    """Make the error of values that a thing of timm's does not take."""
    return ConfigError(
        f"{flag} must be what {taker} takes in timm; got {' '.join(words)}, which ends in "
        f"{type(error).__name__}: {' '.join(str(error).split())}. Correct it, or leave it out."
    )
