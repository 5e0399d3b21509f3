import errno
import io
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    DownloadError,
    ImageError,
    NoRoomError,
    RejectsError,
    SourceError,
    SrpError,
    StoppedRunError,
    VerificationError,
)
from pipeline.terminal import BYTES, Commands, console, few, printable, progress_bars

STATUSES = {
    SrpError: 1,
    DivergedError: 1,
    NoRoomError: 1,
    ConfigError: 2,
    SourceError: 2,
    DownloadError: 2,
    CheckpointError: 2,
    VerificationError: 3,
    RejectsError: 4,
    StoppedRunError: 130,
}


def fail_with(error: BaseException) -> Result:
    @click.group(cls=Commands)
    def main() -> None:
        pass

    @main.command()
    @click.option("--count", type=int)
    def work(count: int) -> None:
        raise error

    return CliRunner().invoke(main, ["work"])


def test_every_error_that_ends_a_program_has_its_status() -> None:
    def below(kind: type[SrpError]) -> set[type[SrpError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert below(SrpError) - {ImageError} == set(STATUSES)


@pytest.mark.parametrize(("kind", "status"), STATUSES.items())
def test_an_expected_failure_is_one_line_on_stderr_and_its_status(
    kind: type[SrpError], status: int
) -> None:
    result = fail_with(kind("rule; got\nvalue.  Fix."))
    assert result.stderr == "error: rule; got value. Fix.\n"
    assert result.stdout == ""
    assert result.exit_code == status


def test_an_interruption_says_how_to_go_on() -> None:
    result = fail_with(KeyboardInterrupt())
    assert result.stderr == "error: interrupted. Run the same command again to go on.\n"
    assert result.exit_code == 130


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/a.tar"), "Free some space there"),
        (OSError(errno.ENOSPC, "No space left on device"), "Free some space there"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/out/a.tar"), "Free some space there"),
        (OSError(errno.EFBIG, "File too large", "/out/a.tar"), "Raise the limit on the size of"),
        (OSError(errno.EROFS, "Read-only file system", "/out"), "Make the disk writable, or"),
        (OSError(errno.EIO, "Input/output error", "/out"), "Check the disk and its cables"),
        (PermissionError(errno.EACCES, "Permission denied", "/out"), "its permissions"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_place_and_fix(error: OSError, words: str) -> None:
    result = fail_with(error)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"got {error.strerror} at {error.filename or 'a file'}" in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours"), ZeroDivisionError()])
def test_a_bug_is_not_hidden(error: Exception) -> None:
    assert fail_with(error).exception is error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "No such option '--nonsense'."),
        (["nonsense"], "No such command 'nonsense'."),
        (["work", "--count", "x"], "Invalid value for '--count': 'x' is not a valid integer."),
        (["work", "more"], "Got unexpected extra argument (more)"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(arguments: list[str], message: str) -> None:
    @click.group(cls=Commands)
    def main() -> None:
        pass

    main.command("work")(click.option("--count", type=int)(lambda count: None))
    result = CliRunner().invoke(main, arguments)
    command = "main work" if arguments[0] == "work" else "main"
    assert result.stderr == f"error: {message} See: {command} --help\n"
    assert result.exit_code == 2


def test_no_command_shows_the_help() -> None:
    result = CliRunner().invoke(Commands("main", help="What it does."), [])
    assert "What it does." in result.output
    assert "error" not in result.output


def test_any_file_name_is_printable_on_one_line() -> None:
    assert printable("a\nb \udcff é") == "a b \\udcff é"


def test_of_many_names_a_few_are_listed_and_the_rest_is_counted() -> None:
    assert few(["a"]) == "a"
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def render(unit: str, add: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> str:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with progress_bars(unit, extra=("loss {task.fields[loss]}",)) as bars:
        add(bars)
    return stderr.getvalue()


def test_progress_shows_count_rate_extra_columns_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = render(
        "images/s",
        lambda bars: bars.add_task("building [red]", total=1234, completed=617, loss="0.5"),
        monkeypatch,
    )
    for words in ("building [red]", "617/1,234", "images/s", "loss 0.5", "ETA"):
        assert words in text


def test_bytes_are_counted_in_mb_by_the_bar_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(bars: object) -> None:
        bars.add_task("reading", total=132_349_943, completed=5 * 10**7, unit=BYTES, loss="")  # type: ignore[attr-defined]
        bars.add_task("building", total=7, loss="")  # type: ignore[attr-defined]

    text = render("images/s", add, monkeypatch)
    reading, building = text.splitlines()
    assert "50.0/132.3" in reading
    assert "MB/s" in reading
    assert "0/7" in building
    assert "images/s" in building


def test_without_a_bar_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert render("images/s", lambda _bars: None, monkeypatch) == ""


def test_a_file_name_with_brackets_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    console().print("passed over [/red] [bold]x.txt")
    assert stderr.getvalue() == "passed over [/red] [bold]x.txt\n"


def test_a_package_of_an_extra_that_is_missing_is_named_with_what_installs_it() -> None:
    result = fail_with(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert result.exit_code == 2
    assert result.stderr == (
        "error: this command needs a package that is not installed; got none named torch. "
        "Install the trainer's with: pip install 'srp[train]'\n"
    )
