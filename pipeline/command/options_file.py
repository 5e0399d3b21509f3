"""A file of options: one TOML table with a config's fields, written for people, read back exactly.

A field that is None has no line, since TOML has no such value.
"""

import difflib
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.command.settings import settings_of
from pipeline.common.errors import ConfigError, escaped, printable


def options_text(fields: Mapping[str, Any], heading: tuple[str, ...] = ()) -> str:
    """Write fields as TOML.

    Args:
        fields: Texts, numbers, bools, and tuples of these; None leaves a field out.
        heading: Lines of comment before them.
    """
    comments = [f"# {printable(line)}" for line in heading]
    lines = [f"{name} = {_value(value)}" for name, value in fields.items() if value is not None]
    return "\n".join([*comments, *lines, ""])


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):  # escaped as in JSON, which leaves DEL as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def read_options(path: Path, config: type) -> dict[str, Any]:
    """Read what `options_text` wrote, or a person.

    Args:
        path: The file.
        config: Class whose fields are made by `setting`, and name the options.

    Returns:
        The values of the file's fields, of the fields' types; the config checks their ranges.

    Raises:
        ConfigError: If the file is no such table; it names the file and the key.
    """
    known, hints = settings_of(config), typing.get_type_hints(config)
    values = {}
    for name, value in _table(path).items():
        if name not in known:
            raise ConfigError(
                f"each key of a file of options must be an option; got {escaped(name)!r} in "
                f"{path}. {_meant(name, list(known))}"
            )
        try:
            values[name] = msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"{name} must have the option's type; got {value!r} in {path}: {error}. Correct it."
            ) from error
    return values


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"a file of options must be readable; got {path}: {error.strerror}. Name another."
        ) from error
    except ValueError as error:  # also of a text that is not UTF-8
        raise ConfigError(
            f"a file of options must be TOML; got {path}: {error}. Correct it."
        ) from error


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"Write {close[0]}." if close else "Leave it out."
