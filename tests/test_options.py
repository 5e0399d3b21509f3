"""Every option of every command, frozen in options.txt so that a change of one shows in review.

After a change on purpose: `python tests/test_options.py > tests/options.txt`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pipeline.cli.main import main as srp_data
from training.cli.train import main as srp_train

FROZEN = Path(__file__).with_name("options.txt")


def lines(command: click.Command, name: str) -> Iterator[str]:
    """Give a line for each argument and option of a command, and of the commands below it."""
    for parameter in command.params:
        yield f"{name} {line(parameter)}"
    for below, nested in sorted(getattr(command, "commands", {}).items()):
        yield from lines(nested, f"{name} {below}")


def line(parameter: click.Parameter) -> str:
    kind = parameter.type
    words = [kind.name.removesuffix(" range")]
    if isinstance(kind, click.Choice):
        words = ["|".join(kind.choices)]
    elif isinstance(kind, click.IntRange | click.FloatRange):
        words.append(kind._describe_range())
    if isinstance(parameter, click.Argument):
        return " ".join((parameter.human_readable_name, *words))
    assert isinstance(parameter, click.Option)
    spelt = "/".join((*parameter.opts, *parameter.secondary_opts))
    repeated = ["repeated"] if parameter.multiple else []
    return " ".join((spelt, *words, *repeated, end(parameter)))


def end(option: click.Option) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):  # in words, such as a number of CPUs
        return f"default ({option.show_default})"
    if option.name == "workers":
        return "default (by the CPUs)"
    default = option.to_info_dict()["default"]
    return "no default" if default in (None, "", ()) else f"default {default}"


def surface() -> str:
    found = (*lines(srp_data, "srp-data"), *lines(srp_train, "srp-train"))
    return "".join(f"{each}\n" for each in found)


def test_no_option_changes_unnoticed() -> None:
    assert surface().splitlines() == FROZEN.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    sys.stdout.write(surface())
