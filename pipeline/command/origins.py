"""Where an option's value comes from: typed, a variable, a file of options, or the default.

That is the order of precedence, click's own. An error that names an option which was not typed
also says where its value was found.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pipeline.command.options_file import read_options
from pipeline.common.errors import ConfigError

_FILE = "srp.options"  # key of a context under which the path of the file of options is kept

Decorated = TypeVar("Decorated", bound=Callable[..., object])


class Command(click.Command):
    """A command whose errors say where the options that they name come from."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, unless a variable is none of its options."""
        _check_variables(ctx)
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise type(error)(f"{error}{origins(ctx, str(error))}") from error


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def file_option(config: type) -> Callable[[Decorated], Decorated]:
    """Add -c to a command, which reads defaults of a config's options from a file.

    Args:
        config: Class whose fields are made by `setting`.
    """

    def read(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
        if path is not None and not context.resilient_parsing:
            context.default_map = read_options(path, config)
            context.meta[_FILE] = path

    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,  # the other options look up their defaults after it
        expose_value=False,
        callback=read,
        metavar="FILE",
        help="TOML file of options, such as the run.toml of a run; what is typed takes precedence. "
        " [default: none]",
    )


def origins(context: click.Context, text: str) -> str:
    """Say where the options that a text names were found, with a space before it.

    Args:
        context: Of the command that has the options.
        text: An error.

    Returns:
        A sentence for each option that was not typed; often nothing.
    """
    found = []
    for option in context.command.params:
        flag = next((flag for flag in option.opts if flag.startswith("--")), "")
        if not flag or not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text):
            continue
        source = context.get_parameter_source(str(option.name))
        if source is ParameterSource.ENVIRONMENT:
            found.append(f" {flag} is from the variable {_variable(context, option)}.")
        elif source is ParameterSource.DEFAULT_MAP:
            found.append(f" {flag} is from {option.name} in {context.meta[_FILE]}.")
    return "".join(found)


def _variable(context: click.Context, option: click.Parameter) -> str:
    """Name the variable of an option, as click does."""
    return f"{context.auto_envvar_prefix}_{str(option.name).upper()}"


def _check_variables(context: click.Context) -> None:
    """Refuse a variable that is meant for a command, but is none of its options."""
    if context.auto_envvar_prefix is None:  # it was called without its program
        return
    options = (each for each in context.command.params if isinstance(each, click.Option))
    known = {_variable(context, option) for option in options}
    start = f"{context.auto_envvar_prefix}_"
    for name in sorted(os.environ):
        if name.startswith(start) and name not in known:
            raise ConfigError(
                f"a variable {start}... must be an option of {context.command_path}; got {name}. "
                f"Unset it, or see: {context.command_path} --help"
            )
