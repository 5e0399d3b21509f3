"""A real web server for what is read over the network; it misbehaves on request."""

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.stream import remote_file

Fault = Callable[["Handler", bytes, int], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that had enough
            super().handle_error(*args)  # type: ignore[arg-type]


class Web:
    """A folder on a web server. `faults` answer the next requests for first shards, one each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[Fault] = []
        self.has_ranges = True
        self.requests: list[tuple[str, str]] = []
        self.server = Server(("127.0.0.1", 0), partial(Handler, self))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def asked_for(self, name: str) -> list[str]:
        """List the ranges that were asked for of one file."""
        return [wanted for path, wanted in self.requests if path == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def __init__(self, web: Web, *args: object) -> None:
        self.web = web
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        name = self.path.lstrip("/")
        self.web.requests.append((name, wanted))
        path = self.web.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        data = path.read_bytes()
        if name.endswith("-000000.tar") and self.web.faults:
            self.web.faults.pop(0)(self, data, start)
        elif not self.web.has_ranges:
            self.answer(data, start=0)
        elif start >= len(data) and wanted:
            self.send_error(416)
        else:
            self.answer(data, start=start)

    def answer(
        self, data: bytes, *, start: int, sent: int | None = None, announced: int | None = None
    ) -> None:
        """Send data from `start` on; `sent` and `announced` bytes of it, if not all."""
        rest = data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(rest) if announced is None else announced))
        self.end_headers()
        self.wfile.write(rest[:sent])
        if sent is not None:
            self.close_connection = True


@pytest.fixture
def web(canvas_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The canvas shards on a web server of this machine; waits between tries take no time."""
    for package in ("aiohttp", "fsspec"):
        pytest.importorskip(package, reason="needs the extra remote_file, which is not installed")
    monkeypatch.setattr(remote_file, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    served = Web(canvas_shards)
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()
