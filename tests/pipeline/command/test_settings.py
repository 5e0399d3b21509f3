"""A setting is a field, an option and their check, written once."""

import math
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.command.options import options_of
from pipeline.command.settings import check_settings, flag_of, setting
from pipeline.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    size_px: int = setting(8, "Side, px.", flags="--size", low=1, high=64)
    rate: float | None = setting(None, "Rate.  [default: none]", low=0, high=1)
    kind: str = setting("plain", "Kind.", choices=("plain", "fancy"))
    flip: bool = setting(True, "Flip.")
    mean: tuple[float, float, float] = setting((0.1, 0.2, 0.3), "Mean.", low=0, high=1)
    channels: tuple[int, ...] | None = setting(None, "Channels.  [default: 8]", low=1)
    names: tuple[str, ...] = setting((), "Name.", multiple=True, choices=("a", "b"))
    out: Path | None = setting(None, "File.  [default: none]", flags="-o --out")
    workers: int = setting(2, "Threads.", flags="-j --workers", shown="CPUs")

    def __post_init__(self) -> None:
        check_settings(self)


@click.command()
@options_of(Config)
def command(**options: object) -> None:
    click.echo(repr(Config(**options)))  # type: ignore[arg-type]


def test_a_command_without_options_makes_the_default_config() -> None:
    assert CliRunner().invoke(command).output.strip() == repr(Config())


def test_every_kind_of_option_reaches_its_field() -> None:
    typed = "--size 9 --rate 0.5 --kind fancy --no-flip --mean 0.4,0.5,0.6 --channels 3,4 "
    typed += "--names a --names b -o file -j 3"
    config = Config(
        size_px=9,
        rate=0.5,
        kind="fancy",
        flip=False,
        mean=(0.4, 0.5, 0.6),
        channels=(3, 4),
        names=("a", "b"),
        out=Path("file"),
        workers=3,
    )
    assert CliRunner().invoke(command, typed.split()).output.strip() == repr(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size_px": 0}, "--size must be at least 1; got 0."),
        ({"size_px": 65}, "--size must be at most 64; got 65."),
        ({"rate": math.nan}, "--rate must be at least 0; got nan."),
        ({"mean": (0.1, 2.0, 0.3)}, "--mean must be at most 1; got 2.0."),
        ({"channels": (1, 0)}, "--channels must be at least 1; got 0."),
        ({"kind": "odd"}, "--kind must be one of plain, fancy; got 'odd'."),
        ({"names": ("a", "c")}, "--names must be one of a, b; got 'c'."),
    ],
)
def test_a_value_outside_is_refused_in_the_name_of_its_option(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**fields)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_the_config_and_not_click_checks_a_range() -> None:
    result = CliRunner().invoke(command, ["--size", "0"])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("1,2", "'1,2' is not 3 numbers joined by commas."),
        ("1,x,2", "'1,x,2' is not 3 numbers joined by commas."),
    ],
)
def test_joined_numbers_are_counted_and_read(typed: str, message: str) -> None:
    assert message in CliRunner().invoke(command, ["--mean", typed]).output


def test_the_help_shows_defaults_ranges_and_choices() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    for part in (
        "[default: 8; 1<=x<=64]",
        "[plain|fancy]",
        "[default: (CPUs)]",
        "--flip / --no-flip",
    ):
        assert part in text
    assert flag_of(Config, "size_px") == "--size"
    assert flag_of(Config, "flip") == "--flip"
