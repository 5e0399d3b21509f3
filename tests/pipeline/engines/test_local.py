import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reported import Reported

from pipeline.common.errors import SrpError
from pipeline.engines import local
from pipeline.engines.in_worker import count_image

Lost = list[tuple[Any, int, str]]


@pytest.fixture(autouse=True, scope="module")
def quick_start() -> None:
    """Let workers find loaded what this file needs, if no test has started the server yet."""
    local.start_server(("pipeline.write.worker", "pipeline.pixels.kernels"))


def run(
    work: Callable[[Any], Any],
    tasks: list[Any],
    *,
    lost: Lost | None = None,
    on_images: Callable[[int], object] = lambda _: None,
    **options: Any,
) -> Iterator[Any]:
    """Run tasks; one that lost its worker is run again as its own negative."""

    def retry(task: Any, num_done: int, how: str) -> Any:
        assert lost is not None
        lost.append((task, num_done, how))
        return -task

    options = {"workers": 2, "timeout_s": 300, **options}
    return local.run_tasks(
        work, tasks, retry=retry, num_images=99, progress=Reported(on_images), **options
    )


def count_to(number: int) -> int:
    for _ in range(number):
        count_image()
    return number


def die_unless_negative(number: int) -> int:
    if number < 0:
        return count_to(-number)
    count_to(number)
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def exit_unless_negative(number: int) -> int:
    if number > 0:
        os._exit(0)
    return count_to(-number)


@pytest.mark.parametrize("work", [die_unless_negative, exit_unless_negative])
def test_a_worker_that_dies_costs_its_task_another_try_and_no_other_task(work: Any) -> None:
    lost: Lost = []
    seen: list[int] = []
    results = list(run(work, [5, -3, 2, -4], lost=lost, on_images=seen.append))
    assert Counter(results) == Counter([5, 3, 2, 4])
    num_done = {5: 5, 2: 2} if work is die_unless_negative else {5: 0, 2: 0}
    assert sorted(lost) == [(2, num_done[2], "died"), (5, num_done[5], "died")]
    assert seen[-1] == 14, "the images of a second try are not counted twice"


def sleep_unless_negative(number: int) -> int:
    count_to(abs(number))
    if number > 0:
        time.sleep(3600)
    return -number


def stop_unless_negative(number: int) -> int:
    count_to(abs(number))
    if number > 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    return -number


@pytest.mark.parametrize("work", [sleep_unless_negative, stop_unless_negative])
def test_a_worker_that_hangs_is_killed_and_its_task_retried(work: Any) -> None:
    lost: Lost = []
    assert sorted(run(work, [7, -2], lost=lost, timeout_s=0.5)) == [2, 7]
    assert lost == [(7, 7, "hung")]


def count_slowly(number: int) -> int:
    for _ in range(number):
        time.sleep(0.2)
        count_image()
    return number


def test_a_worker_that_is_slow_but_gets_on_does_not_hang() -> None:
    assert list(run(count_slowly, [8], timeout_s=1)) == [8]


def test_time_for_which_the_build_itself_stood_still_is_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(local.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(local, "_GRACE_S", 10**6)
    assert list(run(count_slowly, [3], timeout_s=20)) == [3]


def test_giving_up_on_a_task_ends_the_build_and_its_other_workers() -> None:
    def give_up(_task: int, _num_done: int, _how: str) -> int:
        raise SrpError("no more")

    with pytest.raises(SrpError, match="no more"):
        list(
            local.run_tasks(
                die_unless_negative, [1, 2, 3], workers=2, timeout_s=300,
                num_images=99, retry=give_up,
            )
        )  # fmt: skip


class DiesOnArrival:
    def __reduce__(self) -> Any:
        return os._exit, (1,)

    def __call__(self, task: int) -> int:
        raise NotImplementedError


def test_a_worker_that_dies_before_its_first_task_is_an_error_and_no_hang() -> None:
    with pytest.raises(
        SrpError, match=r"^a worker died before its first shard .* fewer --workers; finished"
    ):
        list(run(DiesOnArrival(), [1, 2]))


def test_images_are_counted_across_workers() -> None:
    seen: list[int] = []
    assert Counter(run(count_to, [5, 0, 7], on_images=seen.append)) == Counter([5, 0, 7])
    assert seen == sorted(seen)
    assert seen[-1] == 12


class OddError(Exception):
    """Cannot be sent between processes as exceptions usually are."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd in task {one + two}")


def fail(task: int) -> int:
    if task == 3:
        raise OddError(1, 2)
    raise ValueError(f"bug in task {task}")


@pytest.mark.parametrize(("task", "kind"), [(1, ValueError), (3, RuntimeError)])
def test_a_bug_in_a_worker_comes_out_with_the_place_where_it_was(task: int, kind: type) -> None:
    with pytest.raises(kind) as caught:
        list(run(fail, [task]))
    assert f"in task {task}" in str(caught.value)
    assert ", in fail\n" in "".join(getattr(caught.value, "__notes__", [])) + str(caught.value)


def count_for_ever(_task: int) -> None:
    while True:
        count_image()


def test_workers_stop_when_the_build_is_interrupted() -> None:
    def interrupt(num_images: int) -> None:
        if num_images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(count_for_ever, [1, 2], on_images=interrupt))


def note_and_hang(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    count_image()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(3600)


def test_an_interrupt_ends_workers_that_do_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_GRACE_S", 0.3)

    def interrupt(num_images: int) -> None:
        if num_images == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(note_and_hang, [tmp_path, tmp_path], on_images=interrupt))
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_without_tasks_no_process_is_started() -> None:
    assert list(run(fail, [])) == []
