"""How both programs meet the terminal: one line per error, one look for progress.

Results go to stdout; progress and messages go to stderr.
"""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pipeline.errors import ConfigError, SrpError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

INTERRUPTED = 130
BYTES = "MB/s"
OWN_PACKAGES = ("", "pipeline", "training")
STAGE_UNITS = {
    "reading the archive": BYTES,
    "checking finished shards": "shards/s",
    "measuring": "turns/s",
}

Command = TypeVar("Command", bound=Callable[..., object])


class Commands(click.Group):
    """A click group that ends every expected failure in one line and its exit status."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options before the command's name."""
        with one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `pipeline.errors` for the statuses."""
        with one_line_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program in one line where the user, the data or the system is at fault."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else ""
        _end(f"{error.format_message()} See: {command} --help", ConfigError.exit_status)
    except SrpError as error:
        _end(str(error), error.exit_status)
    except KeyboardInterrupt:
        _end("interrupted. Run the same command again to go on.", INTERRUPTED)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in OWN_PACKAGES:
            raise
        _end(
            f"this command needs a package that is not installed; got none named {name}. "
            "Install the trainer's with: pip install 'srp[train]'",
            ConfigError.exit_status,
        )
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno is None:
            raise
        _end(
            f"a file could not be read or written; got {error.strerror} at "
            f"{error.filename or 'a file that the system does not name'}. {_fix(error)}",
            SrpError.exit_status,
        )


def _fix(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space there and run the same command again."
    if error.errno == errno.EFBIG:
        return "Raise the limit on the size of files (ulimit -f) and run the same command again."
    if error.errno == errno.EROFS:
        return "Make the disk writable, or name a folder on another."
    if error.errno == errno.EIO:
        return "Check the disk and its cables, and run the same command again."
    return "Check the path and its permissions."


def _end(message: str, status: int) -> NoReturn:
    click.echo(f"error: {printable(message)}", err=True)
    sys.exit(status)


def printable(text: str) -> str:
    """Put a text that may hold file names on one line that any terminal can take."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def few(names: Sequence[str]) -> str:
    """List the first names, and count the rest."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def option(
    name: str, default: object, text: str, kind: click.ParamType[Any] | None = None
) -> Callable[[Command], Command]:
    """Make an option that shows the default it takes from its config."""
    return click.option(name, default=default, show_default=True, help=text, type=kind)


def console() -> "Console":
    """Open stderr for people; lines are not wrapped where it is not a terminal."""
    from rich.console import Console

    # No markup: a file name may hold brackets.
    screen = Console(stderr=True, highlight=False, markup=False)
    return screen if screen.is_terminal else Console(stderr=True, width=160, markup=False)


def _number_columns(unit: str) -> tuple["ProgressColumn", "ProgressColumn"]:
    """Make the columns for count and rate; a bar's field `unit` goes before `unit`."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    def amount(number: float, unit: str) -> str:
        return f"{number / 1e6:,.1f}" if unit == BYTES else f"{number:,.0f}"

    class CountColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            own = str(task.fields.get("unit") or unit)
            total = "?" if task.total is None else amount(task.total, own)
            return Text(f"{amount(task.completed, own)}/{total}")

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            own = str(task.fields.get("unit") or unit)
            speed = task.finished_speed or task.speed
            return Text(f"{amount(speed, own) if speed else '-'} {own}")

    return CountColumn(), RateColumn()


@contextlib.contextmanager
def progress_bars(unit: str, *, extra: tuple[str, ...] = ()) -> Iterator["Progress"]:
    """Show bars with count, rate and time left.

    Args:
        unit: Of the rate, such as `images/s`; bytes are counted in MB if it is `BYTES`.
        extra: Further rich columns, between the count and the rate.
    """
    from rich import progress

    class Bars(progress.Progress):
        def add_task(self, *args: Any, **kwargs: Any) -> progress.TaskID:
            self.start()  # not before: without a bar, rich would print an empty line
            return super().add_task(*args, **kwargs)

    count, rate = _number_columns(unit)
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        count,
        *(progress.TextColumn(column) for column in extra),
        rate,
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=console())
    try:
        yield bars
    finally:
        if bars.tasks:
            bars.stop()


def stages(bars: "Progress") -> Callable[[str, int, int], None]:
    """Show each stage of a command as a bar of its own."""
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, unit=STAGE_UNITS.get(stage))
        bars.update(tasks[stage], completed=done, total=total)

    return report
