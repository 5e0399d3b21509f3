"""The terminal of both programs: one line per error, one look for progress.

Results go to stdout; progress and messages go to stderr.
"""

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline.command.origins import Command, Group, origins
from pipeline.common.atomic_io import named_output
from pipeline.common.errors import (
    ConfigError,
    LostRankError,
    PreemptedRunError,
    SrpError,
    StoppedRunError,
    ToldError,
    printable,
)
from pipeline.common.event_log import LOG
from pipeline.common.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

EXIT_STATUSES = (
    "Exit status: 0 done, 1 bug, full disk or memory, or diverged loss, 2 usage, 3 damaged data, "
    "4 rejects, 75 preempted (SIGTERM), 130 interrupted (Ctrl-C)."
)
MOST_SILENT_S = 30  # a process waits as long for torchrun to end it, which takes 0.1 s
TYPED = "srp.typed"  # key of a context under which the words of the command are kept
BYTES = "MB/s"
STAGE_UNITS = {
    "reading the archive": BYTES,
    "checking finished shards": "shards/s",
    "measuring": "turns/s",
}


class Resumable(Command):
    """A command that continues where it was stopped when it is typed again."""


class Commands(Group):
    """A click group that ends every expected failure in one line and its exit status."""

    def __init__(
        self, *args: Any, extra: str = "", variables: str = "", torchrun: str = "", **kwargs: Any
    ) -> None:
        """Add what all programs share: exit statuses in the help, variables, and `--log`.

        Args:
            args: For click.
            extra: Extra of srp that installs missing packages.
            variables: What the variables of its options begin with.
            torchrun: Command that starts the program in several processes, up to their number.
            kwargs: For click.
        """
        settings = {
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
            "auto_envvar_prefix": variables or None,
        }
        named = f" Each option may also be a variable: {variables}_COMMAND_OPTION."
        epilog = EXIT_STATUSES + (named if variables else "")
        super().__init__(*args, **{"context_settings": settings, "epilog": epilog} | kwargs)
        self._extra, self._torchrun = extra, torchrun
        self.params.append(
            click.Option(
                ["--log"],
                type=click.Path(path_type=Path),
                metavar="FILE",
                expose_value=False,
                callback=_open_log,
                help="Append what happens as JSON Lines.  [default: nowhere]",
            )
        )

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **kwargs: Any) -> (
        click.Context
    ):  # fmt: skip
        """Parse the options before the command's name."""
        typed = [info_name or "", *args]
        with one_line_errors():
            context = super().make_context(info_name, args, *rest, **kwargs)
        context.meta[TYPED] = typed
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `pipeline.common.errors` for the statuses."""
        with one_line_errors(self._next_step(ctx), extra=self._extra), _preemptible():
            LOG.write("start", command=ctx.meta[TYPED])
            result = super().invoke(ctx)
            LOG.write("end", status=0)
            return result

    def _next_step(self, ctx: click.Context) -> str:
        """Say what to type after an interruption."""
        typed: list[str] = ctx.meta[TYPED]
        named = next((name for name in typed[1:] if name in self.commands), "")
        command = self.commands.get(named)
        has_option = command is not None and any(p.name == "resume" for p in command.params)
        added = ["--resume"] if has_option and "--resume" not in typed else []
        verb = "Resume" if isinstance(command, Resumable) else "Run again"
        program, where = self._program(typed[0])
        return f" {verb}{where} with: {program} {shlex.join([*typed[1:], *added])}"

    def _program(self, typed: str) -> tuple[str, str]:
        """Say what starts the program as it was started, and where."""
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not self._torchrun or num_processes == 1:
            return typed, ""
        local = f"torchrun --nproc-per-node {num_local}"
        if num_processes == num_local:
            return f"{local} {self._torchrun}", ""
        hosts = f"--nnodes {num_processes // num_local} --rdzv-backend c10d"
        return f"{local} {hosts} --rdzv-endpoint HOST:PORT {self._torchrun}", " on each host"


def _open_log(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    if context.resilient_parsing:  # a shell asks for completions
        return
    if path is None:
        LOG.open(None, warn=note)  # of an earlier command in this process
        return
    with named_output(path, "--log", kind="file"):
        LOG.open(path, warn=note)


class Preempted(KeyboardInterrupt):
    """SIGTERM: the cluster takes the machine back."""


@contextlib.contextmanager
def _preemptible() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that everything is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> NoReturn:
        raise Preempted

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def one_line_errors(next_step: str = "", *, extra: str = "") -> Iterator[None]:
    """End the program in one line if the user, the data or the system is at fault.

    Args:
        next_step: What to type after an interruption, with a space before it.
        extra: Extra of srp that installs missing packages.
    """
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        if not _is_first_here():
            _await_end()
            sys.exit(ConfigError.exit_status)
        command, told = error.ctx.command_path if error.ctx else "", error.format_message()
        found = origins(error.ctx, told) if error.ctx else ""
        _end(f"{told}{found} See: {command} --help", ConfigError.exit_status)
    except SrpError as error:
        if isinstance(error, ToldError) or not (error.is_agreed or _is_first_here()):
            _await_end()
            sys.exit(error.exit_status)
        how = next_step if isinstance(error, StoppedRunError | LostRankError) else ""
        _end(f"{error}{how}", error.exit_status)
    except KeyboardInterrupt as error:
        kind = PreemptedRunError if isinstance(error, Preempted) else StoppedRunError
        if not _is_first_here():
            sys.exit(kind.exit_status)
        reason = "stopped by SIGTERM." if isinstance(error, Preempted) else "interrupted."
        _end(f"{reason}{next_step}", kind.exit_status)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "pipeline", "training"):
            raise
        _end(
            f"this command needs the package {name}, which is not installed. "
            f"Install it with: pip install '{extra or name}'",
            ConfigError.exit_status,
        )
    except MemoryError:
        _end("out of memory: lower --workers, or free some memory.", SrpError.exit_status)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno is None:
            raise
        place = error.filename or "a file that the system does not name"
        _end(f"cannot access {place}: {error.strerror}. {_fix(error)}", SrpError.exit_status)


def _is_first_here() -> bool:
    """Whether torchrun started this process first on its machine: all have the same command."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _await_end() -> None:
    """Wait until torchrun ends this process, since it does so when the one that speaks has ended.

    If this one ended first, torchrun would end that one before it speaks.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(MOST_SILENT_S)


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
    LOG.write("end", status=status, error=printable(message))
    sys.exit(status)


def note(text: str) -> None:
    """Print a line for people, and log it."""
    console().print(printable(text), soft_wrap=True)
    LOG.write("note", text=printable(text))


AS_JSON = click.option(
    "--json/--text", "as_json", default=False, show_default=True, help="Print for programs."
)


def console() -> "Console":
    """Open stderr; lines are wrapped only in a terminal."""
    from rich.console import Console

    # No markup: a file name may hold brackets.
    screen = Console(stderr=True, highlight=False, markup=False)
    return screen if screen.is_terminal else Console(stderr=True, width=160, markup=False)


def _number_columns(unit: str) -> tuple["ProgressColumn", "ProgressColumn"]:
    """Make the columns of count and rate; a task's own unit takes precedence."""
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
def shown_progress(unit: str) -> Iterator[Progress]:
    """Show progress on stderr, a bar a stage with count, rate and ETA, and write it to the log.

    Args:
        unit: Unit of the rate, such as `images/s`, where `STAGE_UNITS` names no other for a stage.
            Bytes are counted in MB if it is `BYTES`.
    """
    from rich import progress

    count, rate = _number_columns(unit)
    bars = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        count,
        progress.TextColumn("{task.fields[figures]}", markup=False),
        rate,
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        console=console(),
    )
    try:
        yield _Shown(bars)
    finally:
        if bars.tasks:
            bars.stop()


class _Shown(Progress):
    """A bar for each stage."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._widths: dict[str, int] = {}  # of the table's columns, by heading
        LOG.begin()

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        if stage not in self._tasks:
            self._bars.start()  # not before: without a bar, rich would print an empty line
            self._tasks[stage] = self._bars.add_task(
                stage, total=total or None, unit=STAGE_UNITS.get(stage), figures=""
            )
        self._bars.update(self._tasks[stage], completed=done, total=total or None, figures=figures)
        LOG.stage(stage, done, total)

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        row = fields.pop("row", None)
        if text and isinstance(row, dict) and self._bars.console.is_terminal:
            self._show_row({**row, "left": self._left()})
        elif text:
            self._bars.console.print(printable(text), soft_wrap=True)
        LOG.write(name, **fields)

    def _show_row(self, row: dict[str, str]) -> None:
        """Print a row above the bars, its headings before the first and where a column grows."""
        cells = {printable(heading): printable(cell) for heading, cell in row.items()}
        widths = {
            heading: max(len(heading), len(cell), self._widths.get(heading, 0))
            for heading, cell in cells.items()
        }
        lines = [cells] if widths == self._widths else [{name: name for name in cells}, cells]
        self._widths = widths
        for line in lines:
            texts = [text.rjust(widths[name]) for name, text in line.items()]
            first = next(iter(line))  # the only column of words
            texts[0] = line[first].ljust(widths[first])
            self._bars.console.print("  ".join(texts), soft_wrap=True)

    def _left(self) -> str:
        """Say how long the slowest bar will still take, which is that of the whole."""
        left = [task.time_remaining for task in self._bars.tasks if not task.finished]
        seconds = max((each for each in left if each is not None), default=0.0)
        return str(timedelta(seconds=round(seconds)))
