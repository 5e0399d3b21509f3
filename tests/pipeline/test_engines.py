import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from pipeline import engines
from pipeline.errors import SrpError


def die(_task: int) -> int:
    os._exit(1)


def test_a_worker_that_dies_is_an_error_and_no_hang() -> None:
    with pytest.raises(SrpError, match=r"one was killed .* fewer --workers: finished shards are"):
        list(engines.run_local(die, [1, 2, 3], workers=2, on_images=lambda _: None))


def count_to(number: int) -> int:
    for _ in range(number):
        engines.count_image()
    return number


def test_images_are_counted_across_workers() -> None:
    seen: list[int] = []
    results = list(engines.run_local(count_to, [5, 0, 7], workers=2, on_images=seen.append))
    assert Counter(results) == Counter([5, 0, 7])
    assert seen == sorted(seen)
    assert seen[-1] == 12


def fail(task: int) -> int:
    raise ValueError(f"bug in task {task}")


def test_a_bug_in_a_worker_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="bug in task 1"):
        list(engines.run_local(fail, [1], workers=2, on_images=lambda _: None))


def count_for_ever(_task: int) -> None:
    while True:
        engines.count_image()


def test_workers_stop_when_the_build_is_interrupted() -> None:
    def interrupt(num_images: int) -> None:
        if num_images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engines.run_local(count_for_ever, [1, 2], workers=2, on_images=interrupt))


def test_an_interrupt_waits_until_processes_have_started_and_they_never_see_it() -> None:
    blocked = "import signal as s; print(s.SIGINT in s.pthread_sigmask(s.SIG_BLOCK, ()))"
    seen = []

    def interrupt_and_go_on() -> None:
        with engines._held_interrupts():
            signal.raise_signal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(subprocess.check_output([sys.executable, "-c", blocked], text=True))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_and_go_on()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["True\n"]


def test_without_tasks_no_process_is_started() -> None:
    assert list(engines.run_local(fail, [], workers=2, on_images=lambda _: None)) == []
