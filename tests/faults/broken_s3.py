"""A proxy before a real S3 server, which refuses, throttles and drops requests as it is told."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest
from served import Server, serving, wait_for_half

from pipeline.remote import objects, remote_file

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
Fault = Callable[["Request"], bool]
"""What may happen to a request; returns whether that was all, so that it is not passed on."""


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    proxy: "Proxy"

    def log_message(self, *args: object) -> None:
        pass

    def answer_all(self) -> None:
        self.proxy.requests.append((self.command, self.path))
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        if any(fault(self) for fault in self.proxy.faults):
            return
        self.pass_on(self.body())

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer_all

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def pass_on(self, body: bytes) -> None:
        """Ask the server with the same head, so that its signature holds, and close."""
        self.close_connection = True
        head = [self.requestline]
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                head.append(f"{name}: {value}")
        with socket.create_connection(("127.0.0.1", self.proxy.port)) as server:
            server.sendall("\r\n".join([*head, "Connection: close", "", ""]).encode() + body)
            while data := server.recv(1 << 16):
                self.wfile.write(data)

    def refuse(self, status: int, text: bytes) -> None:
        self.body()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(text)


class Proxy:
    """Requests that were made, and the faults that each one passes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        handler = type("OwnRequest", (Request,), {"proxy": self})
        self.server = Server(("127.0.0.1", 0), handler)

    def asked(self, method: str, ending: str) -> int:
        """Count the requests for objects whose address ends so."""
        return sum(
            made == method and path.partition("?")[0].endswith(ending)
            for made, path in self.requests
        )


@contextmanager
def broken_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Put a proxy before the S3 server that the environment names."""
    proxy = Proxy(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port or 0)
    address = f"http://127.0.0.1:{proxy.server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.0)
    remote_file._filesystem.cache_clear()
    with serving(proxy.server):
        try:
            yield proxy
        finally:
            remote_file._filesystem.cache_clear()


def _is_for(request: Request, method: str, ending: str) -> bool:
    return request.command == method and urlsplit(request.path).path.endswith(ending)


def throttle(method: str, ending: str, times: int) -> Fault:
    """Answer 503 SlowDown so many times."""
    return _sometimes(method, ending, times, lambda request: request.refuse(503, SLOW_DOWN))


def deny(method: str, ending: str) -> Fault:
    """Answer 403 each time."""
    return _sometimes(method, ending, 1 << 30, lambda request: request.refuse(403, DENIED))


def drop(method: str, ending: str, times: int) -> Fault:
    """Close the connection in the middle of the body."""

    def close(request: Request) -> None:
        request.rfile.read(int(request.headers.get("Content-Length") or 0) // 2)
        request.close_connection = True

    return _sometimes(method, ending, times, close)


def lose_answer(method: str, ending: str, times: int) -> Fault:
    """Let the server do what is asked, and never tell."""

    def swallow(request: Request) -> None:
        request.wfile = open(os.devnull, "wb")  # type: ignore[assignment] # noqa: SIM115
        request.pass_on(request.body())
        request.wfile.close()

    return _sometimes(method, ending, times, swallow)


def fall_silent(request: Request, ending: str, hung: threading.Event) -> bool:
    """Read half of a body, and do nothing more until the client is gone."""
    if not _is_for(request, "PUT", ending):
        return False
    wait_for_half(request, hung)
    return True


def _sometimes(method: str, ending: str, times: int, act: Callable[[Request], object]) -> Fault:
    left = [times]

    def fault(request: Request) -> bool:
        if left[0] == 0 or not _is_for(request, method, ending):
            return False
        left[0] -= 1
        act(request)
        return True

    return fault
