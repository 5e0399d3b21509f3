"""Run one loader's task in a process of its own, and leave nothing of it running."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline.bench.loaders.protocol import Answer, Task
from pipeline.common.errors import ConfigError

LIMIT_S = 900
SOCKET_PATH_BYTES = 103  # of sun_path, the least of Linux and macOS
SOCKET_NAME_BYTES = 40  # /pymp-12345678/listener-12345678, and some


def run_child(python: Path, task: Task, *, scratch: Path) -> Answer:
    """Hand a task to an interpreter and wait for its answer.

    The process leads a group of its own, which holds its workers, so that Ctrl-C, a crash or a
    worker that hangs leaves none running.

    Args:
        python: Interpreter of the loader's environment.
        task: What to do.
        scratch: Folder for the package's link, and for what libraries put among temporary files.

    Raises:
        ConfigError: If the interpreter cannot be started.
    """
    with tempfile.TemporaryFile(dir=scratch) as notes:
        try:
            child = subprocess.Popen(  # noqa: S603
                [str(python), "-P", "-m", "pipeline.bench.loaders.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=notes,
                text=True,
                env=_environment(scratch),
                cwd=scratch,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"--python must name an interpreter; got {python} for {task.loader}: "
                f"{error.strerror}. Make one with: make bench-envs"
            ) from error
        try:
            printed, _ = child.communicate(f"{task.to_json()}\n", timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            return Answer(problem=f"no end after {LIMIT_S} s")
        finally:
            _kill(child)
        if child.returncode == 0 and printed:
            return Answer(**json.loads(printed))
        notes.seek(0)
        lines = notes.read().decode("utf-8", "replace").strip().splitlines()
    reason = lines[-1] if lines else f"exit status {child.returncode}"
    return Answer(problem=f"failed: {reason}")


def _environment(scratch: Path) -> dict[str, str]:
    """Show the other environment this package alone, not what is installed with it."""
    code = scratch / "code"
    if not code.exists():
        code.mkdir()
        (code / "pipeline").symlink_to(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": str(code)}
    temporary = scratch / "tmp"
    # Workers pass memory by sockets among temporary files. Where the path is longer than a
    # socket's may be, they wait for ever without an error.
    if len(os.fsencode(temporary)) + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES:
        temporary.mkdir(exist_ok=True)
        environment["TMPDIR"] = str(temporary)
    return environment


def _kill(child: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdin, child.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    child.wait()


def shorten(answer: Answer, *, chars: int = 120) -> Answer:
    """Keep a reason to one line of the table."""
    if answer.problem is None:
        return answer
    text = " ".join(answer.problem.split())
    return replace(answer, problem=text if len(text) <= chars else f"{text[: chars - 1]}…")
