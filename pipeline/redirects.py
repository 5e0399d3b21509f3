"""HTTP sessions that follow no redirect to where an address may not lead. Needs aiohttp."""

import asyncio
import ipaddress
import socket
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from pipeline.errors import DownloadError

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0


async def make_session(**options: Any) -> aiohttp.ClientSession:
    """Open a session for fsspec's HTTP file system."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    return aiohttp.ClientSession(
        trace_configs=[trace],
        trust_env=True,  # proxies, as other tools take them from the environment
        auto_decompress=False,  # offsets count the bytes that are stored
        headers={"Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
        ),
        **options,
    )


async def _check_redirect(
    _session: aiohttp.ClientSession,
    _context: SimpleNamespace,
    params: aiohttp.TraceRequestRedirectParams,
) -> None:
    """Stop before the next request is made.

    Raises:
        DownloadError: If the redirect leads to another scheme, or from a public host to this
            machine or its network, where a request may do what its sender could not.
    """
    location = params.response.headers.get("Location", "")
    target = params.url.join(URL(location))
    reason = None
    if target.scheme != params.url.scheme:
        reason = f"the scheme {target.scheme}"
    elif await _is_inner(target) and not await _is_inner(params.url):
        reason = "an address inside a private network"
    if reason:
        params.response.close()
        raise DownloadError(
            f"a redirect must stay with the scheme and outside private networks; got {reason} in "
            f"{target} from {params.url}. If you trust it, name that folder as the address."
        )


async def _is_inner(url: URL) -> bool:
    """Whether a host is this machine or lies in a private network, by any of its addresses."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host or "", url.port, type=socket.SOCK_STREAM
        )
    except OSError:
        return False  # the request itself will fail, and say so
    addresses = {str(socket_address[0]).partition("%")[0] for *_, socket_address in found}
    return any(not ipaddress.ip_address(address).is_global for address in addresses)
