import errno
import io
import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipeline.bench.cli import bench
from pipeline.cli.main import main as pipeline_main
from pipeline.command.console import (
    EXIT_STATUSES,
    MOST_SILENT_S,
    Commands,
    Preempted,
    Resumable,
    console,
    shown_progress,
)
from pipeline.common.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    DownloadError,
    EveryRankError,
    ImageError,
    LostRankError,
    NoRoomError,
    PreemptedRunError,
    RejectsError,
    SourceError,
    SrpError,
    StoppedRunError,
    StoreError,
    ToldError,
    VerificationError,
)
from pipeline.common.event_log import LOG
from pipeline.common.progress import Progress
from training.cli.train import main as training_main

SrpData = Callable[..., Result]

STATUSES = {
    SrpError: 1,
    DivergedError: 1,
    NoRoomError: 1,
    LostRankError: 1,
    ConfigError: 2,
    EveryRankError: 2,
    SourceError: 2,
    DownloadError: 2,
    StoreError: 2,
    CheckpointError: 2,
    VerificationError: 3,
    RejectsError: 4,
    StoppedRunError: 130,
    PreemptedRunError: 75,
}


def fail_with(error: BaseException, kind: type[click.Command] = Resumable) -> Result:
    @click.group(cls=Commands, extra="srp[all]", torchrun="-m program")
    def main() -> None:
        pass

    @main.command(cls=kind)
    @click.option("--count", type=int)
    def work(count: int) -> None:
        raise error

    return CliRunner().invoke(main, ["work"])


def test_every_error_that_ends_a_program_has_its_status() -> None:
    def below(kind: type[SrpError]) -> set[type[SrpError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert below(SrpError) - {ImageError, ToldError} == set(STATUSES)


@pytest.mark.parametrize(("kind", "status"), STATUSES.items())
def test_an_expected_failure_is_one_line_on_stderr_and_its_status(
    kind: type[SrpError], status: int
) -> None:
    result = fail_with(kind("rule; got\nvalue.  Fix."))
    is_open = issubclass(kind, StoppedRunError | LostRankError)
    resume = " Resume with: main work" if is_open else ""
    assert result.stderr == f"error: rule; got value. Fix.{resume}\n"
    assert result.stdout == ""
    assert result.exit_code == status


def test_an_interruption_says_how_to_go_on() -> None:
    result = fail_with(KeyboardInterrupt())
    assert result.stderr == "error: interrupted. Resume with: main work\n"
    assert result.exit_code == 130


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "interrupted."),
        (Preempted(), "stopped by SIGTERM."),
        (StoppedRunError("saved."), "saved."),
    ],
)
def test_only_a_command_that_resumes_says_so(error: BaseException, told: str) -> None:
    assert fail_with(error).stderr == f"error: {told} Resume with: main work\n"
    anew = fail_with(error, click.Command)
    assert anew.stderr == f"error: {told} Run again with: main work\n"


def test_an_interruption_before_a_command_is_known_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "make_context", interrupt)
    result = CliRunner().invoke(Commands("main"), ["work"])
    assert (result.stderr, result.exit_code) == ("error: interrupted.\n", 130)


def test_the_commands_that_resume_are_those_that_keep_what_they_did() -> None:
    resuming = {
        name
        for program in (pipeline_main, training_main)
        for name, command in program.commands.items()
        if isinstance(command, Resumable)
    }
    assert resuming == {
        "build-shards", "download", "plan", "merge", "from", "distill", "study", "headroom",
    }  # fmt: skip
    assert not any(isinstance(c, Resumable) for c in bench.commands.values())


def test_a_sigterm_unwinds_and_says_how_to_go_on() -> None:
    unwound = []

    @click.group(cls=Commands)
    def main() -> None:
        pass

    @main.command(cls=Resumable)
    @click.argument("names", nargs=-1)
    @click.option("--resume", is_flag=True)
    def work(names: tuple[str, ...], resume: bool) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            unwound.append((names, resume))

    before = signal.getsignal(signal.SIGTERM)
    for typed in (["work", "a b", "c"], ["work", "--resume", "a b", "c"]):
        result = CliRunner().invoke(main, typed)
        again = shlex.join(typed if "--resume" in typed else [*typed, "--resume"])
        assert result.stderr == f"error: stopped by SIGTERM. Resume with: main {again}\n"
        assert result.exit_code == 75
    assert unwound == [(("a b", "c"), False), (("a b", "c"), True)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_under_torchrun_one_process_speaks_and_names_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for error in (PreemptedRunError("saved."), LostRankError("lost.")):
        said = fail_with(error)
        assert said.stderr.endswith("Resume with: torchrun --nproc-per-node 2 -m program work\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for ended, status in (
        (PreemptedRunError("saved."), 75), (EveryRankError("held."), 2), (ToldError(3), 3),
        (click.UsageError("no such option"), 2), (KeyboardInterrupt(), 130),
    ):  # fmt: skip
        silent = fail_with(ended)
        assert (silent.stderr, silent.exit_code) == ("", status)
    agreed = LostRankError("lost.")
    agreed.is_agreed = True
    assert fail_with(agreed).stderr.startswith("error: lost. Resume with: torchrun ")


def test_on_several_hosts_the_command_to_resume_is_that_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fail_with(LostRankError("lost.")).stderr == (
        "error: lost. Resume on each host with: torchrun --nproc-per-node 1 --nnodes 2 "
        "--rdzv-backend c10d --rdzv-endpoint HOST:PORT -m program work\n"
    )


def test_a_silent_process_waits_until_torchrun_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setattr(time, "sleep", slept.append)
    assert fail_with(ToldError(2)).exit_code == 2
    assert slept == [MOST_SILENT_S]


@pytest.mark.parametrize("program", [pipeline_main, training_main])
def test_the_statuses_are_in_the_help_and_in_the_readme(program: click.Group) -> None:
    told = set(re.findall(r"\b(\d+) ", EXIT_STATUSES))
    assert told == {"0"} | {str(status) for status in STATUSES.values()}
    shown = " ".join(CliRunner().invoke(program, ["--help"]).output.split())
    assert EXIT_STATUSES in shown
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    assert told == set(re.findall(r"^\| (\d+) \|", readme, re.MULTILINE))


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
    place = error.filename or "a file that the system does not name"
    assert result.stderr.startswith(f"error: cannot access {place}: {error.strerror}. ")
    assert words in result.stderr


def test_a_full_memory_is_one_line_with_a_fix() -> None:
    result = fail_with(MemoryError())
    assert result.exit_code == 1
    assert result.stderr == "error: out of memory: lower --workers, or free some memory.\n"


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


NASTY = "\x1b[31m\u202e"


def test_no_escape_sequence_of_a_file_name_reaches_the_terminal(
    own_tree: Path, tmp_path: Path, srp_data: SrpData
) -> None:
    (own_tree / f"train/cat/{NASTY}.txt").write_text("skipped")
    (own_tree / f"train/cat/{NASTY}.jpg").write_text("rejected")
    sizes = ("--canvas-size", 32, "--crop-size", 32, "--glimpse-size", 8, "-j", 1)
    refused = srp_data("build-shards", own_tree, tmp_path / "out", *sizes)
    assert refused.exit_code == 4
    built = srp_data("build-shards", own_tree, tmp_path / "out", *sizes, "--max-rejects", 1)
    assert built.exit_code == 0
    missing = srp_data("build-shards", own_tree / NASTY, tmp_path / "other")
    assert missing.exit_code == 2
    spelt = r"\x1b[31m\u202e"
    assert f"rejected train/cat/{spelt}.jpg: " in built.stdout
    assert f"\nskipped train/cat/{spelt}.txt\n" in built.stdout
    assert f"the first train/cat/{spelt}.jpg (" in refused.stderr
    assert f"/{spelt}, which does not exist" in missing.stderr
    for text in (built.output, refused.output, missing.output):
        assert text.replace("\n", "").isprintable()


def render(unit: str, report: Callable[[Progress], None], monkeypatch: pytest.MonkeyPatch) -> str:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with shown_progress(unit) as progress:
        report(progress)
    return stderr.getvalue()


def test_progress_shows_count_rate_figures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = render(
        "images/s",
        lambda progress: progress.update("building [red]", 617, 1234, "loss [b]0.5"),
        monkeypatch,
    )
    for words in ("building [red]", "617/1,234", "images/s", "loss [b]0.5", "ETA"):
        assert words in text


def test_bytes_are_counted_in_mb_by_the_bar_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(progress: Progress) -> None:
        progress.update("reading the archive", 5 * 10**7, 132_349_943)
        progress.update("building", 0, 7)

    reading, building = render("images/s", report, monkeypatch).splitlines()
    assert "50.0/132.3" in reading
    assert "MB/s" in reading
    assert "0/7" in building
    assert "images/s" in building


def test_without_a_bar_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert render("images/s", lambda _progress: None, monkeypatch) == ""


def test_a_file_name_with_brackets_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    console().print("skipped [/red] [bold]x.txt")
    assert stderr.getvalue() == "skipped [/red] [bold]x.txt\n"


def test_a_package_of_an_extra_that_is_missing_is_named_with_what_installs_it() -> None:
    result = fail_with(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert result.exit_code == 2
    assert result.stderr == (
        "error: this command needs the package torch, which is not installed. "
        "Install it with: pip install 'srp[all]'\n"
    )


ROW = {"stage": "fit [b]", "epoch": "1/3", "loss": "2.5"}


def test_in_a_terminal_a_row_takes_the_texts_place_and_has_headings_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def report(progress: Progress) -> None:
        progress.update("fit", 1, 3)
        for number in (1, 2):
            progress.event("epoch", "the text", row={**ROW, "epoch": f"{number}/3"}, epoch=number)
        progress.event("epoch", "the text", row={**ROW, "stage": "explore, half"}, epoch=3)
        progress.event("epoch", row=ROW)  # silent, as one of several runs side by side

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", render("images/s", report, monkeypatch))
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if "left" in line]
    assert lines == ["stage    epoch  loss     left", "stage          epoch  loss     left"]
    rows = [line for line in text.replace("\r", "\n").splitlines() if "2.5" in line]
    assert [line.split("  ")[0] for line in rows] == ["fit [b]", "fit [b]", "explore, half"]
    assert "the text" not in text


def test_elsewhere_the_text_is_printed_and_no_row_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    LOG.open(log, warn=print)
    try:
        text = render(
            "images/s",
            lambda progress: progress.event("epoch", "the text", row=ROW, epoch=1),
            monkeypatch,
        )
    finally:
        LOG.open(None, warn=print)
    assert text == "the text\n"
    assert '"epoch": 1' in log.read_text()
    assert "row" not in log.read_text()
