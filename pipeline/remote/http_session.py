"""HTTP sessions that no server can redirect into a private network. Needs aiohttp.

The address that a connection is made to is checked, not a header or an earlier look-up: a name may
have several addresses, and other ones a moment later.
"""

import asyncio
import socket
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from pipeline.common.errors import DownloadError
from pipeline.remote.address import is_inner

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0


async def make_session(**options: Any) -> aiohttp.ClientSession:
    """Open a session for fsspec's HTTP file system.

    Its requests raise DownloadError where a server redirects to another scheme, or from a public
    address to this machine or its network, which the server itself could not reach.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(_set_out)
    trace.on_request_redirect.append(_check_scheme)
    return aiohttp.ClientSession(
        connector=_Connector(),
        trace_configs=[trace],
        trust_env=True,  # proxies of the environment, as other tools use them
        auto_decompress=False,  # offsets count the bytes that are stored
        headers={"Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        ),
        **options,
    )


@dataclass
class _Trail:
    """The way of one request through its redirects.

    Attributes:
        start: What the user requested.
        host: The host that is requested now.
        is_proxied: Whether a proxy requests it; then the connection is to the proxy.
        was_outside: Whether a server outside private networks has answered.
        is_refused: Whether an address of the host was refused.
    """

    start: URL
    host: str = ""
    is_proxied: bool = False
    was_outside: bool = False
    is_refused: bool = False


_trail: ContextVar[_Trail] = ContextVar("_trail")


async def _set_out(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    params: aiohttp.TraceRequestStartParams,
) -> None:
    _trail.set(_Trail(params.url))


async def _check_scheme(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    params: aiohttp.TraceRequestRedirectParams,
) -> None:
    headers = params.response.headers
    target = params.url.join(URL(headers.get("Location") or headers.get("URI") or ""))
    if target.scheme != params.url.scheme:
        params.response.close()
        raise _refusal(f"the scheme {target.scheme}", target, params.url)


class _Connector(aiohttp.TCPConnector):
    def __init__(self) -> None:
        super().__init__(socket_factory=self._open_socket)
        self._outer_hosts: set[str] = set()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Connect to a request's host, or find an open connection to it.

        Raises:
            DownloadError: If all its addresses are refused.
        """
        trail = _trail.get()
        trail.host, trail.is_proxied = req.url.host or "", req.proxy is not None
        refusal = _refusal("an address inside a private network", req.url, trail.start)
        try:
            connection = await super().connect(req, traces, timeout)
        except aiohttp.ClientConnectorError as error:
            if trail.is_refused:
                raise refusal from error
            raise
        peer = connection.transport.get_extra_info("peername") if connection.transport else None
        inner = await _is_inner(req.url) if trail.is_proxied else not peer or is_inner(peer[0])
        if inner and self._is_outside(trail):  # the connection was open already
            connection.close()
            raise refusal
        if not inner:
            trail.was_outside = True
            self._outer_hosts.add(trail.host)
        return connection

    def _open_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket for one of a host's addresses, or refuse the address."""
        family, kind, protocol, _, place = address
        trail = _trail.get()
        if not trail.is_proxied and self._is_outside(trail) and is_inner(str(place[0])):
            trail.is_refused = True
            raise OSError("inside a private network")
        return socket.socket(family, kind, protocol)

    def _is_outside(self, trail: _Trail) -> bool:
        return trail.was_outside or trail.host in self._outer_hosts


def _refusal(reason: str, target: URL, start: URL) -> DownloadError:
    return DownloadError(
        "a server must not redirect to another scheme, nor from outside into a private network; "
        f"got {reason} in {target} from {start}. If you trust it, name that folder as the address."
    )


async def _is_inner(url: URL) -> bool:
    """Whether a host behind a proxy has an inner address; the proxy may see other ones."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host or "", url.port, type=socket.SOCK_STREAM
        )
    except OSError:
        return False  # the proxy may know the name
    return any(is_inner(str(place[0])) for *_, place in found)
