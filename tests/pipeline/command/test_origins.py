from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.bench.cli import bench as pipeline_bench
from pipeline.cli.main import main as srp_data
from pipeline.command.console import Commands
from pipeline.command.options import options_of
from pipeline.command.origins import Command, file_option
from pipeline.command.settings import check_settings, setting
from training.cli.bench import bench as training_bench
from training.cli.train import main as srp_train


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = setting(20, "Epochs.", low=1)
    kind: str = setting("plain", "Kind.", choices=("plain", "fancy"))
    flip: bool = setting(True, "Flip.")
    sizes: tuple[int, ...] = setting((), "Size.", multiple=True)
    mean: tuple[float, float] = setting((0.5, 1.0), "Mean.")

    def __post_init__(self) -> None:
        check_settings(self)


@click.group(cls=Commands, variables="PROGRAM")
def main() -> None:
    pass


@main.command("do-it")
@file_option(Config)
@options_of(Config)
def do_it(**options: object) -> None:
    click.echo(repr(Config(**options)))  # type: ignore[arg-type]


def run(*words: object, **variables: str) -> Result:
    return CliRunner().invoke(main, ["do-it", *map(str, words)], env=variables)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_what_is_typed_precedes_a_variable_and_that_a_file_and_that_the_default(
    path: Path,
) -> None:
    path.write_text('epochs = 5\nkind = "fancy"\nflip = false\nsizes = [1, 2]\nmean = [0, 1]\n')
    by_file = {"epochs": 5, "kind": "fancy", "flip": False, "sizes": (1, 2), "mean": (0.0, 1.0)}
    assert run("-c", path).stdout.strip() == repr(Config(**by_file))  # type: ignore[arg-type]
    variable = {"PROGRAM_DO_IT_EPOCHS": "6"}
    assert "epochs=6, kind='fancy'" in run("-c", path, **variable).stdout
    assert "epochs=7, kind='fancy'" in run("--epochs", 7, "-c", path, **variable).stdout
    assert "epochs=20, kind='plain'" in run().stdout
    named = {"PROGRAM_DO_IT_CONFIG": str(path)}
    assert "epochs=5, kind='fancy'" in run(**named).stdout


def test_a_variable_may_hold_what_is_repeated_joined_or_a_flag() -> None:
    result = run(PROGRAM_DO_IT_SIZES="3 4", PROGRAM_DO_IT_MEAN="0,0.25", PROGRAM_DO_IT_FLIP="false")
    assert "flip=False, sizes=(3, 4), mean=(0.0, 0.25)" in result.stdout


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("EPOCHS", "0", "--epochs must be at least 1; got 0. --epochs is from VARIABLE.\n"),
        ("EPOCHS", "x", "'x' is not a valid integer. --epochs is from VARIABLE. See: "),
        ("KIND", "new", "'new' is not one of 'plain', 'fancy'. --kind is from VARIABLE. See: "),
        ("FLIP", "often", "'often' is not a valid boolean"),
    ],
)
def test_the_error_of_a_variable_names_it(name: str, value: str, message: str) -> None:
    variable = f"PROGRAM_DO_IT_{name}"
    result = run(**{variable: value})
    assert message.replace("VARIABLE", f"the variable {variable}") in result.stderr
    assert variable in result.stderr
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_the_error_of_a_file_names_it_with_the_key(path: Path) -> None:
    for text, message in (
        ("epochs = 0", "--epochs must be at least 1; got 0. --epochs is from epochs in FILE.\n"),
        ('kind = "new"', "'new' is not one of 'plain', 'fancy'. --kind is from kind in FILE. See"),
        ("epoch = 1", "must be an option; got 'epoch' in FILE. Write epochs.\n"),
    ):
        path.write_text(text)
        result = run("-c", path)
        assert message.replace("FILE", str(path)) in result.stderr
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_an_error_of_what_was_typed_names_no_origin(path: Path) -> None:
    path.write_text("epochs = 5\n")
    result = run("--epochs", 0, "-c", path, PROGRAM_DO_IT_EPOCHS="7")
    assert result.stderr == "error: --epochs must be at least 1; got 0.\n"


def test_a_variable_that_is_no_option_is_refused() -> None:
    result = run(PROGRAM_DO_IT_EPOCH="7", PROGRAM_OTHER="1")
    assert result.stderr == (
        "error: a variable PROGRAM_DO_IT_... must be an option of main do-it; got "
        "PROGRAM_DO_IT_EPOCH. Unset it, or see: main do-it --help\n"
    )


def leaves(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield from leaves(command) if isinstance(command, click.Group) else (command,)


@pytest.mark.parametrize("program", [srp_data, srp_train])
def test_every_command_says_where_its_options_come_from(program: Commands) -> None:
    assert all(isinstance(command, Command) for command in leaves(program))
    assert {pipeline_bench, training_bench} & set(program.commands.values())


@pytest.mark.parametrize(
    ("program", "words", "variable"),
    [
        (srp_data, ("sample", "OUT"), "SRP_DATA_SAMPLE_TRAIN"),
        (srp_train, ("from", "OUT"), "SRP_TRAIN_FROM_EPOCHS"),
        (srp_train, ("bench", "step", "OUT"), "SRP_TRAIN_BENCH_STEP_ROUNDS"),
    ],
)
def test_both_programs_take_options_from_variables_and_name_them(
    program: Commands, words: tuple[str, ...], variable: str, tmp_path: Path
) -> None:
    typed = [str(tmp_path) if word == "OUT" else word for word in words]
    result = CliRunner().invoke(program, typed, env={variable: "0"})
    assert result.exit_code == 2
    assert result.stderr.endswith(f" is from the variable {variable}.\n")
    shown = " ".join(CliRunner().invoke(program, ["--help"]).output.split())
    assert f" {variable.split('_')[0]}_{variable.split('_')[1]}_COMMAND_OPTION." in shown
