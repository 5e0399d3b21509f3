import random
import threading
from contextlib import closing
from typing import Any, ClassVar

import pytest

from pipeline.remote import remote_file
from pipeline.remote.address import RemoteFolder
from pipeline.remote.remote_file import RemoteFile, wait_s


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, 1.0), ("7", 7.0), ("999", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), ("-3", 1.0)],
)
def test_a_server_that_asks_for_a_longer_wait_gets_it(
    asked: str | None, expected: float, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(threading.Event):
        waits: ClassVar[list[float]] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout or 0.0)
            return False

    def too_often(handler: Any, data: bytes, start: int) -> None:
        handler.send_response(503)
        if asked is not None:
            handler.send_header("Retry-After", asked)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(remote_file, "FIRST_WAIT_S", 1.0)
    monkeypatch.setattr(remote_file, "_CHANCE", random.Random())
    monkeypatch.setattr(remote_file._CHANCE, "random", lambda: 0.5)
    web.faults = [too_often]
    folder = RemoteFolder(scheme="http", address=web.address)
    with closing(RemoteFile(folder, "train-000000.tar", num_bytes=None, stop=Clock())) as file:
        assert file.read(100)
    assert Clock.waits == [expected]


def test_waits_double_and_those_who_failed_together_do_not_retry_together() -> None:
    def waits(chance: float, asked_s: float = 0.0) -> list[float]:
        return [wait_s(n, asked_s=asked_s, chance=chance) for n in (1, 2, 3, 4)]

    assert waits(0.5) == [0.5, 1.0, 2.0, 4.0]
    assert waits(0.0) == [0.25, 0.5, 1.0, 2.0]
    assert waits(1.0) == [0.75, 1.5, 3.0, 6.0]
    assert waits(0.0, 10.0) == [10.0] * 4  # never sooner than was asked for
    assert waits(1.0, 10.0) == [15.0] * 4
