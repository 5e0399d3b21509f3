"""How the sessions of Google Cloud Storage connect. Needs aiohttp."""

from typing import Any

import aiohttp
from aiohttp.client_middlewares import ClientHandlerType

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 300.0  # aiohttp's own


class UnreachableError(Exception):
    """No connection could be made; aiohttp would turn an OSError into one of its own."""


def session_options() -> dict[str, Any]:
    """Give gcsfs's `session_kwargs`: a host that is not reached is an error within seconds.

    By itself gcsfs tries a request six times in half a minute, and we try again after that. It
    does not retry what is no error of aiohttp.
    """
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
    return {"middlewares": (_tell_unreachable,), "timeout": timeout}


async def _tell_unreachable(
    request: aiohttp.ClientRequest, handler: ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise UnreachableError(str(error)) from error
