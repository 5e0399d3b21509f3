"""Make a command's options from the settings of a config."""

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.command.settings import Setting, settings_of

Command = TypeVar("Command", bound=Callable[..., object])


def options_of(config: type, *fields: str) -> Callable[[Command], Command]:
    """Add an option to a command for each setting of a config.

    Args:
        config: Class whose fields are made by `setting`.
        fields: Fields that become options, in the order of the help; all if none is given.
    """
    kept = settings_of(config)
    hints = typing.get_type_hints(config)

    def decorate(command: Command) -> Command:
        for name in reversed(fields or tuple(kept)):
            command = _option(name, hints[name], *kept[name])(command)
        return command

    return decorate


def _option(name: str, hint: Any, kept: Setting, default: Any) -> Callable[[Command], Command]:
    kind = _bare(hint)
    flags = kept.flags or (f"--{name.replace('_', '-')}",)
    if kind is bool and "/" not in "".join(flags):
        flags = (*flags[:-1], f"{flags[-1]}/--no-{flags[-1].removeprefix('--')}")
    bare: dict[str, Any] = {}
    if kept.bare is not None:
        bare = {"is_flag": False, "flag_value": kept.bare}
    return click.option(
        *flags,
        name,
        type=None if kind is bool else _type_of(kind, kept),
        default=default,
        show_default=kept.shown or _shown(default),
        multiple=kept.multiple,
        help=kept.text,
        **bare,
    )


def _shown(default: Any) -> str | bool:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return default not in (None, "")


def _bare(hint: Any) -> Any:
    """Take None out of a union."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _type_of(kind: Any, kept: Setting) -> click.ParamType[Any]:
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not kept.multiple:
            return Joined(parts[0], None if parts[-1] is Ellipsis else len(parts))
        kind = parts[0]
    if kept.choices:
        return click.Choice(kept.choices)
    if kind is Path:
        return click.Path(path_type=Path)
    is_ranged = (kept.low, kept.high) != (None, None)
    if kind is int:
        return _Int(_whole(kept.low), _whole(kept.high)) if is_ranged else click.INT
    if kind is float:
        return _Float(kept.low, kept.high) if is_ranged else click.FLOAT
    return click.STRING


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


class _Int(click.IntRange):
    """Shows its range in the help; the config checks it, in one place for library and command."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return click.INT.convert(value, param, ctx)


class _Float(click.FloatRange):
    """As `_Int`."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return click.FLOAT.convert(value, param, ctx)


class Joined(click.ParamType[Any]):
    """Numbers or names joined by commas."""

    def __init__(self, kind: type, count: int | None = None) -> None:
        """Accept `count` of a kind, or any number of them."""
        self.kind, self.count = kind, count
        one = "NAME" if kind is str else "N"
        self.name = ",".join([one] * count) if count else f"{one},{one},..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Split what was typed."""
        if isinstance(value, tuple):
            return value
        expected = f"{self.count or ''} numbers joined by commas".strip()
        try:
            parts = tuple(self.kind(part.strip()) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not {expected}.", param, ctx)
        if self.count and len(parts) != self.count:
            self.fail(f"{value!r} is not {expected}.", param, ctx)
        return parts
