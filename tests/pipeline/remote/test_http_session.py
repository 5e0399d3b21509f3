"""Servers that lead elsewhere. 127.0.0.1 plays the internet, 127.0.0.2 a private network."""

import asyncio
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra remote, which is not installed")

import aiohttp
from yarl import URL

from pipeline.common.errors import DownloadError
from pipeline.remote import remote_file
from pipeline.remote.address import RemoteFolder, is_inner
from pipeline.remote.http_session import _is_inner, make_session
from pipeline.remote.remote_file import RemoteFile

if sys.platform != "linux":
    pytest.skip("needs more than one loopback address", allow_module_level=True)

PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"
REFUSED = r"got an address inside a private network in {} from {}/\w+\. If you trust it, name that"
Places = dict[str, tuple[str, str]]


class Server(ThreadingHTTPServer):
    """Leads by header to where `places` say, and answers all else; notes what it was asked."""

    daemon_threads = True
    places: Places
    asked: list[str]
    num_connections = 0

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.num_connections += 1
        return True

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"  # type: ignore[str-bytes-safe]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        header, target = self.server.places.get(self.path, ("", ""))
        body = b"" if header else b"content"
        self.send_response(302 if header else 200)
        if header:
            self.send_header(header, target)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.path.endswith("/close")

    def log_message(self, *args: object) -> None:
        pass


def serve(host: str) -> Iterator[Server]:
    with Server((host, 0), Handler) as server:
        server.places, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("pipeline.remote.http_session.is_inner", lambda address: address != PUBLIC)
    monkeypatch.setenv("no_proxy", "*")
    yield from serve(PUBLIC)


@pytest.fixture
def private() -> Iterator[Server]:
    """The canary: who is asked here was led here."""
    yield from serve(PRIVATE)


def with_session(ask: Callable[[aiohttp.ClientSession], Awaitable[str]]) -> str:
    async def run() -> str:
        async with await make_session() as session:
            return await ask(session)

    return asyncio.run(run())


def fetch(*urls: str) -> str:
    """Fetch one address after the other in one session; give what the last one holds."""

    async def ask(session: aiohttp.ClientSession) -> str:
        text = ""
        for url in urls:
            async with session.get(url) as response:
                text = await response.text()
        return text

    return with_session(ask)


@pytest.mark.parametrize("header", ["Location", "URI"])
def test_a_redirect_into_a_private_network_is_not_followed(
    header: str, public: Server, private: Server
) -> None:
    public.places = {"/a": (header, f"{private.url}/secret")}
    with pytest.raises(DownloadError, match=REFUSED.format(f"{private.url}/secret", public.url)):
        fetch(f"{public.url}/a")
    assert private.num_connections == 0


@pytest.mark.parametrize("header", ["Location", "URI"])
def test_a_detour_over_public_servers_changes_nothing(
    header: str, public: Server, private: Server
) -> None:
    public.places = {
        "/a": (header, "/b"),
        "/b": (header, f"{public.url}/c"),
        "/c": (header, f"//{PRIVATE}:{private.server_address[1]}/secret"),
    }
    with pytest.raises(DownloadError, match="inside a private network"):
        fetch(f"{public.url}/a")
    assert public.asked == ["/a", "/b", "/c"]
    assert private.num_connections == 0


def test_a_private_server_may_lead_on_but_nobody_leads_back_in(
    public: Server, private: Server
) -> None:
    private.places = {"/a": ("Location", "/b"), "/out": ("Location", f"{public.url}/in")}
    public.places = {"/in": ("Location", f"{private.url}/secret")}
    assert fetch(f"{private.url}/a") == "content"
    with pytest.raises(DownloadError, match="inside a private network"):
        fetch(f"{private.url}/out")
    assert private.asked == ["/a", "/b", "/out"]


def test_a_connection_that_is_open_already_is_no_way_in(public: Server, private: Server) -> None:
    public.places = {"/a": ("Location", f"{private.url}/secret")}
    with pytest.raises(DownloadError, match="inside a private network"):
        fetch(f"{private.url}/mine", f"{public.url}/a")
    assert private.asked == ["/mine"]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What names stand for, from look-up to look-up; the last answer stays."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in known:
            return real(host, port, *args, **options)
        found = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


@pytest.fixture
def twins(public: Server) -> Iterator[tuple[Server, Server]]:
    """Two servers that have one port."""
    with Server((PRIVATE, public.server_address[1]), Handler) as private:
        private.places, private.asked = {}, []
        thread = threading.Thread(target=private.serve_forever, args=(0.01,))
        thread.start()
        yield public, private
        private.shutdown()
        thread.join()


Answers = dict[str, list[list[str]]]


def test_a_name_that_leads_inside_is_not_followed(
    public: Server, private: Server, answers: Answers
) -> None:
    answers["inside.test"] = [[PRIVATE]]
    target = f"http://inside.test:{private.server_address[1]}/secret"
    public.places = {"/a": ("Location", target)}
    with pytest.raises(DownloadError, match=REFUSED.format(target, public.url)):
        fetch(f"{public.url}/a")
    assert private.num_connections == 0


def test_a_name_that_means_another_address_the_second_time_is_not_followed(
    twins: tuple[Server, Server], answers: Answers
) -> None:
    public, private = twins
    answers["rebound.test"] = [[PUBLIC], [PRIVATE]]
    url = f"http://rebound.test:{public.server_address[1]}"

    async def ask(session: aiohttp.ClientSession) -> str:
        async with session.get(f"{url}/close") as response:
            assert await response.text() == "content"
        connector = session.connector
        assert isinstance(connector, aiohttp.TCPConnector)
        connector.clear_dns_cache()  # as if its time were over
        async with session.get(f"{url}/secret") as response:
            return await response.text()

    with pytest.raises(DownloadError, match=REFUSED.format(f"{url}/secret", url)):
        with_session(ask)
    assert public.asked == ["/close"]
    assert private.num_connections == 0


def test_of_a_names_addresses_only_those_outside_are_taken(
    twins: tuple[Server, Server], answers: Answers
) -> None:
    public, private = twins
    answers["both.test"] = [[PRIVATE, PUBLIC]]
    public.places = {"/a": ("Location", f"http://both.test:{public.server_address[1]}/b")}
    assert fetch(f"{public.url}/a") == "content"
    assert public.asked == ["/a", "/b"]
    assert private.asked == []


def test_behind_a_proxy_the_names_are_looked_up_and_the_proxy_may_be_private(
    public: Server, private: Server, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers |= {"outside.test": [[PUBLIC]], "inside.test": [[PRIVATE]]}
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", private.url)
    assert fetch(*["http://outside.test/close"] * 2) == "content"
    private.places = {"http://outside.test/b": ("URI", "http://inside.test/secret")}
    with pytest.raises(DownloadError, match="inside a private network"):
        fetch("http://outside.test/b")
    assert private.asked == ["http://outside.test/close"] * 2 + ["http://outside.test/b"]


def test_a_shard_that_is_led_inside_is_one_line_and_not_tried_again(
    public: Server, private: Server
) -> None:
    remote_file._filesystem.cache_clear()
    public.places = {"/a/t.tar": ("URI", f"{private.url}/secret")}
    file = RemoteFile(RemoteFolder(scheme="http", address=f"{public.url}/a"), "t.tar", num_bytes=7)
    with pytest.raises(DownloadError, match="inside a private network") as caught:
        file.read(7)
    assert "\n" not in str(caught.value)
    assert (public.asked, private.asked) == (["/a/t.tar"], [])
    remote_file._filesystem.cache_clear()


@pytest.mark.parametrize(
    ("host", "inner"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),  # noqa: S104 - asked about, not listened on
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:127.0.0.1", True),
        ("2002:7f00:1::", True),
        ("8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("2606:4700::1111", False),
    ],
)
def test_this_machine_and_private_networks_are_told_from_the_rest(host: str, inner: bool) -> None:
    assert is_inner(host) == inner


def test_names_are_looked_up_for_a_proxy() -> None:
    for host, inner in (("localhost", True), ("2130706433", True), ("8.8.8.8", False)):
        assert asyncio.run(_is_inner(URL(f"http://{host}:80/a"))) == inner
