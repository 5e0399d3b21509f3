"""Worker processes that train the runs of a study side by side, one run at a time each.

On a CPU, two trainings of one thread each are faster than one of two threads. Only the parent
notes Ctrl-C and SIGTERM; it asks the workers to stop by SIGTERM, and each saves its run.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import torch

from pipeline.common.child_process import (
    end_with_parent,
    held_interrupts,
    sendable,
    without_the_current_folder,
)
from pipeline.common.cpus import num_usable
from pipeline.common.errors import (
    DivergedError,
    PreemptedRunError,
    SrpError,
    StoppedRunError,
    few,
)
from pipeline.common.progress import Progress, Weighted
from training.data.processes import Process, started
from training.run.signals import noted_signals
from training.saved.record import RunRecord
from training.study.planned import RUN, PlannedRun, Queue, StudyProgress

Work = Callable[..., RunRecord]
"""Trains the run that is its argument, with `process` and `progress`; a module has it."""

CONTEXT = multiprocessing.get_context("spawn")  # torch's threads survive no fork
_POLL_S = 0.1
_TELL_S = 0.2  # between two reports of a worker
_GRACE_S = 5  # for a process that was killed, or whose pipe is closed, to end


def count_jobs(runs: Sequence[PlannedRun], process: Process, *, wanted: int | None) -> int:
    """Say how many runs to train side by side.

    Args:
        runs: Those that are finished count too, so that a study that is resumed has as many.
        process: This one.
        wanted: None takes one a usable CPU, and one alone on a GPU or among several processes.
    """
    most = wanted or default_jobs(process)
    bases = {run.base for run in runs}  # a run and its base are never trained at the same time
    return min(most, sum(run.name not in bases for run in runs))


def default_jobs(process: Process) -> int:
    """Say how many runs a study trains side by side, if it has as many."""
    is_shared = process.world_size > 1 or process.device.type == "cuda"
    return 1 if is_shared else num_usable()


@dataclass(frozen=True)
class _Moved:
    """How far a worker's run is."""

    share: float


@dataclass(frozen=True)
class _Told:
    """What happened in a run, for the log; `text` alone is printed."""

    name: str
    text: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class _Ended:
    """The record of a worker's run, or what ended it."""

    outcome: RunRecord | Exception


class _Sent(Progress):
    """Sends the parent, in a worker, what happens in a run, and now and then how far it is."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()  # reading threads may warn
        self._moved_s = 0.0

    def send(self, message: object) -> None:
        """Send a message as a whole."""
        with self._lock:
            self._pipe.send(message)

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Send the share of the run that is done."""
        now_s = time.monotonic()
        if stage == RUN and now_s - self._moved_s >= _TELL_S:
            self._moved_s = now_s
            self.send(_Moved(done / total))

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        """Send it for the log; lines of several runs would only be read with the names of all."""
        self.send(_Told(name, "", fields))

    def warn(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        """Send what `warnings` shows."""
        text = warnings.formatwarning(message, category, filename, lineno)
        self.send(_Told("warning", text, {"warning": text}))


def _serve(work: Work, pipe: Connection, num_threads: int) -> None:
    """Train the runs that come through the pipe, in a worker, until it is stopped."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _interrupt)
    torch.set_num_threads(min(num_threads, torch.get_num_threads()))  # OMP_NUM_THREADS may be less
    sent = _Sent(pipe)
    warnings.showwarning = sent.warn  # type: ignore[assignment]  # which is called by position
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        sent.send(None)  # ready
        while True:
            run = pipe.recv()
            sent.send(_Ended(_outcome(work, run, Weighted(sent, RUN, run.costs))))


def _interrupt(number: int, _frame: object) -> NoReturn:
    """Stop a worker where no training notes the signal, once: a cluster sends it as well."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _outcome(work: Work, run: PlannedRun, progress: Progress) -> RunRecord | Exception:
    try:
        with started(run.config.device) as process:
            return work(run, process=process, progress=progress)
    except KeyboardInterrupt:
        return PreemptedRunError(f"{run.name} was stopped by SIGTERM.")
    except Exception as error:
        return sendable(error)


@dataclass(kw_only=True)
class _Worker:
    """One process and its run.

    Attributes:
        process: Runs `_serve`.
        pipe: Connection to it.
        is_ready: Whether it has started.
        run: That it trains now, if any.
    """

    process: BaseProcess
    pipe: Connection
    is_ready: bool = False
    run: PlannedRun | None = None


def run_jobs(queue: Queue, work: Work, *, jobs: int, shown: StudyProgress) -> None:
    """Train all runs of a queue in worker processes.

    Args:
        queue: Gets their records, and the reasons of those that diverged.
        work: Trains one run.
        jobs: Number of workers, which share the CPUs.
        shown: Shows how far all runs are.

    Raises:
        StoppedRunError: If SIGTERM or Ctrl-C stopped the study; each run is saved.
        SrpError: If a worker died.
        Exception: What ended a run but divergence; the others are stopped, and saved.
    """
    pool = _Pool(queue, work, jobs=jobs, shown=shown)
    try:
        with noted_signals() as stop:
            while pool.has_work():
                pool.start_workers()
                pool.send_runs()
                pool.poll()
                if stop.wanted or pool.fault:
                    pool.stop()
        if pool.fault:
            raise pool.fault
        if pool.is_stopping:
            kind = StoppedRunError if stop.wanted == signal.SIGINT else PreemptedRunError
            names = few(pool.stopped) or "the study between two runs"
            raise kind(f"stopped {names}, and saved what is done.")
    finally:
        pool.end()


class _Pool:
    """The workers of a study.

    Attributes:
        fault: What ends the study, if anything does.
        is_stopping: Whether no run begins any more.
        stopped: Names of the runs that were stopped.
    """

    def __init__(self, queue: Queue, work: Work, *, jobs: int, shown: StudyProgress) -> None:
        self.fault: Exception | None = None
        self.is_stopping = False
        self.stopped: list[str] = []
        self._queue, self._shown = queue, shown
        self._work, self._jobs = work, jobs
        self._workers: list[_Worker] = []
        self._warned: set[str] = set()

    def has_work(self) -> bool:
        """Whether a run is trained, or may begin."""
        is_busy = any(worker.run is not None for worker in self._workers)
        return is_busy or (not self.is_stopping and bool(self._queue.ready))

    def start_workers(self) -> None:
        """Start as many workers as runs may begin, up to the number of jobs."""
        num_free = sum(worker.run is None for worker in self._workers)
        wanted = min(self._jobs - len(self._workers), len(self._queue.ready) - num_free)
        for _ in range(0 if self.is_stopping else wanted):
            self._workers.append(_start(self._work, max(1, num_usable() // self._jobs)))

    def send_runs(self) -> None:
        """Give each worker that waits a run that may begin."""
        for worker in self._workers:
            ready = self._queue.ready
            if self.is_stopping or not ready:
                return
            if worker.is_ready and worker.run is None:
                worker.run = ready[0]
                self._queue.begin(ready[0])
                with contextlib.suppress(OSError):  # it died; `poll` finds that
                    worker.pipe.send(ready[0])

    def poll(self) -> None:
        """Wait briefly, and take what the workers send."""
        ready = wait([worker.pipe for worker in self._workers], timeout=_POLL_S)
        for worker in tuple(self._workers):
            if worker.pipe in ready:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    self._lose(worker)
                else:
                    self._take(worker, message)

    def _take(self, worker: _Worker, message: Any) -> None:
        run = worker.run
        match message:
            case _Moved(share) if run:
                self._shown.move(run.name, share)
            case _Told(name, text, fields) if text not in self._warned:  # not once by each worker
                self._warned |= {text} - {""}
                self._shown.event(name, text, **{"run": run and run.name, **fields})
            case _Ended(outcome) if run:
                worker.run = None
                self._close(run, outcome)
            case None:
                worker.is_ready = True

    def _close(self, run: PlannedRun, outcome: RunRecord | Exception) -> None:
        """Keep what a run ended in."""
        if isinstance(outcome, RunRecord):
            self._queue.finish(run, outcome)
        elif isinstance(outcome, DivergedError):  # one arm's failure is a result
            self._queue.fail(run, outcome)
        elif isinstance(outcome, StoppedRunError):
            self.stopped.append(run.name)
            self.stop()
        else:
            self.fault = self.fault or outcome

    def _lose(self, worker: _Worker) -> None:
        """Forget a worker that died, which ends the study."""
        worker.process.join(_GRACE_S)
        worker.pipe.close()
        self._workers.remove(worker)
        if worker.process.exitcode in (0, -signal.SIGTERM):  # by SIGTERM, before it could say so
            self.stopped += [worker.run.name] if worker.run else []
            self.stop()
            return
        where = f"while it trained {worker.run.name}" if worker.run else "before its first run"
        self.fault = self.fault or SrpError(
            f"a worker of the study died {where}; {_ending(worker.process)} (out of memory?). Run "
            "the same command again with a lower --jobs; what is saved is kept."
        )

    def stop(self) -> None:
        """Let no run begin any more, and ask those that are trained to save and stop."""
        if self.is_stopping:
            return
        self.is_stopping = True
        names = [worker.run.name for worker in self._workers if worker.run]
        if names:
            text = f"stopping: {few(names)} will be saved; a second Ctrl-C ends at once"
            self._shown.event("stopping", text, runs=names)
        for worker in self._workers:
            if worker.run:
                os.kill(worker.process.pid or 0, signal.SIGTERM)

    def end(self) -> None:
        """End all workers: those without a run have nothing to save, and take seconds to exit."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join(_GRACE_S)
            worker.pipe.close()


def _start(work: Work, num_threads: int) -> _Worker:
    pipe, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(work, theirs, num_threads), daemon=True)
    try:
        resource_tracker.ensure_running()  # first, since it would let interrupts through again
        with held_interrupts(), without_the_current_folder():  # the parent handles Ctrl-C
            process.start()
    except OSError as error:
        raise SrpError(f"cannot start a worker: {error.strerror}. Lower --jobs.") from error
    theirs.close()  # so that the pipe closes when the worker ends
    return _Worker(process=process, pipe=pipe)


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"got {signal.Signals(-code).name}"
    return f"got exit status {code}"
