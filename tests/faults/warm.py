"""Start Python programs as forks of a process that has imported what they need.

Importing torch and timm takes a program ten times as long as a small training; a fork takes
milliseconds. Each program is a process of its own all the same, with its own environment, folder,
output and signals.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

LARGEST_REQUEST = 1 << 20
NUMBER_CHARS = 16


class Ended(NamedTuple):
    """What the processes of a program left; what they printed stands together."""

    statuses: tuple[int, ...]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        """The status of the first one that failed, or 0."""
        return next(filter(None, self.statuses), 0)


class Program:
    """A running program; the same methods as subprocess.Popen has."""

    def __init__(self, ask: socket.socket, words: tuple[str, ...], **place: object) -> None:
        self._out, self._err = open_aside(), open_aside()
        self._status, told = os.pipe()
        request = json.dumps({"words": words, **place}).encode()
        socket.send_fds(ask, [request], [self._out.fileno(), self._err.fileno(), told])
        os.close(told)
        self.returncode: int | None = None
        self.pid = int(os.read(self._status, NUMBER_CHARS))

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status as soon as there is one."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("program", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(os.read(self._status, NUMBER_CHARS)))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what the program printed, as soon as it has ended."""
        self.wait(timeout)
        return read_all(self._out), read_all(self._err)

    def send_signal(self, number: int) -> None:
        """Signal the program if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the program if it still runs."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._out.close()
        self._err.close()


class WarmPython:
    """A process that has imported modules and forks programs."""

    def __init__(self, *modules: str, folder: Path) -> None:
        self._ask, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ask.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_REQUEST)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(answers.fileno()), *modules],
            pass_fds=[answers.fileno()], env=environment(folder), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._repo = folder
        answers.close()

    def start(self, *words: str, folder: Path, **variables: str) -> Program:
        """Start what `python WORDS` starts, in a folder, with more environment variables."""
        return Program(
            self._ask, words, folder=str(folder), variables=environment(self._repo) | variables
        )

    @contextlib.contextmanager
    def started_together(
        self, *words: str, folder: Path, num_processes: int = 2
    ) -> Iterator[list[Program]]:
        """Start a program in several processes, as torchrun does, and kill them in the end."""
        from torch.distributed import TCPStore  # only the trainer's tests need it

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        group["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        group["WORLD_SIZE"] = group["LOCAL_WORLD_SIZE"] = str(num_processes)
        programs = [
            self.start(*words, folder=folder, RANK=str(rank), LOCAL_RANK=str(rank), **group)
            for rank in range(num_processes)
        ]
        try:
            yield programs
        finally:
            for program in programs:
                program.kill()

    def run_together(self, *words: str, folder: Path, num_processes: int = 2) -> Ended:
        """Run a program in several processes, as torchrun does, to their end."""
        with self.started_together(*words, folder=folder, num_processes=num_processes) as programs:
            printed = [program.communicate() for program in programs]
        out, err = map("".join, zip(*printed, strict=True))
        return Ended(tuple(program.wait() for program in programs), out, err)

    def close(self) -> None:
        """End the process that forks."""
        self._ask.close()
        self._server.wait()


def environment(repo: Path) -> dict[str, str]:
    """One thread a process, and this tree's packages."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)}


def read_all(file: BinaryIO) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


def open_aside() -> BinaryIO:
    return os.fdopen(os.memfd_create("printed"), "w+b")


def serve(requests: socket.socket) -> list[str]:
    """Fork a program for each request; in the program, return its words."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that wait for a program end by themselves
    while True:
        request, files, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 3)
        if not request:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            words = fork_and_wait(json.loads(request), *files)
            return words
        for file in files:
            os.close(file)


def fork_and_wait(request: Mapping[str, object], out: int, err: int, told: int) -> list[str]:
    """Fork, and tell the test the program's number and, in the end, its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.write(told, f"{pid:{NUMBER_CHARS}}".encode())
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(BrokenPipeError):  # the test has ended
            os.write(told, f"{status:{NUMBER_CHARS}}".encode())
        os._exit(0)
    os.close(told)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["variables"])  # type: ignore[call-overload]
    return list(request["words"])  # type: ignore[call-overload]


def run_program(words: list[str]) -> None:
    """Do what `python WORDS` does."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    run_program(serve(socket.socket(fileno=int(sys.argv[1]))))
