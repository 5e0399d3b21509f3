"""Where a download may start from, and where its server may lead it."""

import http.client
import socket
from typing import IO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request

from pipeline.stream.address import is_inner

LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


def is_trusted(url: str) -> bool:
    """Whether a URL is https, or http on this machine, as in tests and local mirrors."""
    return urlsplit(url).scheme == "https" or _is_local_mirror(url)


class TrustedRedirects(HTTPRedirectHandler):
    """Follow no redirect to where a download may not start from, nor into a private network.

    Only a mirror on this machine may lead to this machine.
    """

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> Request | None:
        """Give the next request.

        Raises:
            URLError: If there is to be none.
        """
        reason = None if is_trusted(newurl) else "which is not https"
        if not _is_local_mirror(req.full_url) and _is_inside(newurl):
            reason = "which is inside a private network"
        if reason:
            fp.close()
            raise URLError(f"a redirect to {newurl}, {reason}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_local_mirror(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in LOOPBACK


def _is_inside(url: str) -> bool:
    """Whether a host has an address in a private network.

    A name may have another one when it is asked again; but there it also needs a certificate.
    """
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError:
        return False  # the request itself will fail, and say so
    return any(is_inner(str(place[0])) for *_, place in found)
