"""How several processes end: the first that fails says why, in one line; the others are silent."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from pipeline.common.errors import (
    EveryRankError,
    LostRankError,
    PreemptedRunError,
    SrpError,
    StoppedRunError,
    ToldError,
)

# Gloo's errors are plain ones: most name its own file, but not what it says of a peer that hangs.
GLOOS = ("gloo", "Application timeout caused pair closure")
ENDED = "ended"  # counts the processes that end with an error, in the store that all share


@contextmanager
def one_speaks(store: Store, *, rank: int, answer: timedelta) -> Iterator[None]:
    """Let one process say why all end.

    Args:
        store: That all processes share.
        rank: Of this one, among all.
        answer: Time in which each must join an exchange.

    Raises:
        LostRankError: If another process died or hangs.
        ToldError: If this process is not the one that speaks.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        told = _lost(error, answer) or _stopped(error) or error
        if not (isinstance(error, EveryRankError) and rank) and _is_first(store):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others so
            if isinstance(told, SrpError):
                told.is_agreed = True
        elif isinstance(told, SrpError | OSError):  # others are our bugs
            told = ToldError(getattr(told, "exit_status", SrpError.exit_status))
        if told is error:
            raise
        raise told from error


def _is_first(store: Store) -> bool:
    try:
        return bool(store.add(ENDED, 1) == 1)
    except RuntimeError:  # it ended with its host
        return True


def _stopped(error: BaseException) -> StoppedRunError | None:
    """Turn a signal that came between two trainings into an error, as it is in one."""
    if type(error) is KeyboardInterrupt:
        return StoppedRunError("interrupted.")
    is_signal = isinstance(error, KeyboardInterrupt)
    return PreemptedRunError("stopped by SIGTERM.") if is_signal else None


def _lost(error: BaseException, answer: timedelta) -> LostRankError | None:
    """Recognise what an exchange raises when another process is gone."""
    cause: BaseException | None = None if isinstance(error, SrpError) else error
    while cause is not None:
        is_gloos = isinstance(cause, RuntimeError) and any(word in str(cause) for word in GLOOS)
        if is_gloos or isinstance(cause, dist.DistError):
            _, _, reason = str(cause).splitlines()[0].partition("] ")  # before it, gloo's own file
            reason = (reason or str(cause)).partition(". ")[0]
            minutes = answer.total_seconds() / 60
            return LostRankError(
                "every process of a run must live to its end, and answer the others within "
                f"{minutes:g} minutes; got: {reason}. The last checkpoint is kept."
            )
        cause = cause.__cause__ or cause.__context__
    return None
