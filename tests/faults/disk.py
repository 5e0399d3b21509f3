"""Run small builds whose disk fails, or which are killed, at the n-th step, for every n.

The order's `stride` of more than one leaves out steps.

A process of its own, since a process with threads must not fork: `python disk.py ORDER.json`. It
ends in an AssertionError if a build breaks a promise, and prints the steps that it went through.
"""

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from breaking import STEPS, Act, forked, kill_at, stepped, tell
from click.testing import CliRunner

from pipeline.build import prepare as preparing
from pipeline.cli.main import main
from pipeline.engines import local
from pipeline.format import manifest

OPTIONS = ("--canvas-size=24", "--crop-size=16", "--glimpse-size=8", "--workers=1")


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Build without worker processes, two images a shard."""

    def run_here(work: Any, tasks: Any, **_: Any) -> Iterator[Any]:
        return map(work, tasks)

    with (
        mock.patch.object(local, "run_tasks", run_here),
        mock.patch.object(local, "start_server"),
        mock.patch.object(preparing, "samples_per_shard", return_value=2),
        mock.patch.object(os, "fsync"),  # no power is cut here, and the disk is slow
    ):
        yield


def run(source: Path, out: Path, *options: str) -> Any:
    """Run the command; whatever it ends in is no traceback."""
    arguments = ["build-shards", str(source), str(out), *OPTIONS, *options]
    result = CliRunner().invoke(main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_promises(out: Path, good: list[Mapping[str, str]]) -> None:
    """Every file under a final name is whole, and a manifest describes what is there."""
    for name, digest in files(out).items():
        if not name.startswith("."):
            assert digest in {one.get(name) for one in good}, f"{name} is not whole"
    if (out / manifest.FILE_NAME).exists():
        for shard in manifest.load(out).shards:
            digest = hashlib.sha256((out / shard.name).read_bytes()).hexdigest()
            assert digest == shard.sha256, f"the manifest does not describe {shard.name}"


def prepare(out: Path, before: str | None) -> None:
    shutil.rmtree(out, ignore_errors=True)
    if before:
        shutil.copytree(before, out)


def kill_everywhere(source: Path, out: Path, *, before: str | None, good: Any, stride: int) -> None:
    """Kill a build at its n-th step, and finish it, for every n."""

    def build_stepped(act: Act) -> None:
        with stepped(act):
            assert run(source, out).exit_code == 0

    number = 1 - stride
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += stride
        prepare(out, before)
        status = forked(partial(build_stepped, kill_at(number)))
        check_promises(out, good)
        if status == -signal.SIGKILL:
            result = run(source, out)
            assert result.exit_code == 0, result.output
            tell(reused=result.stderr.partition("reused ")[2].strip())
        assert files(out) == good[-1], f"after a kill at step {number}"
    assert status == 0


def fail_from(number: int, error: int, faults: list[tuple[str, str]]) -> Act:
    """Let every step from the n-th on fail, as it does while a disk stays full or broken."""
    steps = itertools.count(1)

    def act(kind: str, path: Path) -> None:
        is_cleaning = kind in ("unlink", "rmdir")
        # A full disk lets go of files: there is always room for less.
        if next(steps) < number or (is_cleaning and error in (errno.ENOSPC, errno.EDQUOT)):
            return
        if not is_cleaning:
            faults.append((kind, str(path)))
        # The system names the file where it is given a name, and not where a descriptor.
        name = (str(path),) if kind in ("open", *STEPS[1:]) else ()
        raise OSError(error, os.strerror(error), *name)

    return act


def fail_everywhere(source: Path, out: Path, *, error: int, good: Any, stride: int) -> None:
    """Let a build fail from its n-th step on, and finish it on a mended disk, for every n."""
    faults: list[tuple[str, str]] = []
    for number in itertools.count(1, stride):
        prepare(out, None)
        faults.clear()
        with stepped(fail_from(number, error, faults)):
            result = run(source, out)
        check_promises(out, good)
        if not faults:  # nothing but cleaning up was left
            assert result.exit_code == 0
            visible = {name: d for name, d in files(out).items() if not name.startswith(".")}
            assert visible == good[-1]
            return
        if error in (errno.ENOSPC, errno.EDQUOT):
            assert not list(out.rglob("*.partial")), faults[0]
        assert result.exit_code != 0, faults[0]
        assert result.stderr.count("error: ") == 1, result.stderr
        kind, path = faults[0]
        tell(kind=kind, path=path, line=result.stderr.splitlines()[-1])
        assert run(source, out).exit_code == 0
        assert files(out) == good[-1], f"after a failure at step {number}: {faults[0]}"


def main_of_this(order: Any) -> None:
    source, out = Path(order["source"]), Path(order["out"])
    with in_this_process():
        assert run(source, out).exit_code == 0  # warm up
        gc.freeze()
        if "error" in order:
            fail_everywhere(
                source, out, error=order["error"], good=order["good"], stride=order["stride"]
            )
        else:
            kill_everywhere(
                source, out, before=order["before"], good=order["good"], stride=order["stride"]
            )


if __name__ == "__main__":
    main_of_this(json.loads(Path(sys.argv[1]).read_text()))
