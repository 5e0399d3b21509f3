import os
import signal
import subprocess
import sys

import pytest

from pipeline.common.child_process import held_interrupts, sendable
from pipeline.common.errors import DivergedError


def test_an_interrupt_waits_until_processes_have_started_and_they_never_see_it() -> None:
    blocked = "import signal as s; print(s.SIGINT in s.pthread_sigmask(s.SIG_BLOCK, ()))"
    seen = []

    def interrupt_and_go_on() -> None:
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(subprocess.check_output([sys.executable, "-c", blocked], text=True))

    with pytest.raises(KeyboardInterrupt):
        interrupt_and_go_on()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert seen == ["True\n"]


def test_an_error_is_sent_as_it_is_and_one_that_cannot_be_is_sent_in_words() -> None:
    class LocalError(Exception):
        pass

    error = DivergedError("a loss that is no number.", keys=("a",))
    assert sendable(error) is error
    assert "DivergedError: a loss that is no number." in error.__notes__[0]
    worded = sendable(LocalError("no module has this class"))
    assert isinstance(worded, RuntimeError)
    assert "LocalError: no module has this class" in str(worded)
