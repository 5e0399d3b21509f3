"""Where files may be: in a folder of this machine, or at an address of one of a few schemes."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.common.errors import ConfigError

WRITABLE_SCHEMES = ("s3", "gs", "hf")
REMOTE_SCHEMES = ("http", "https", *WRITABLE_SCHEMES)
COPY_AGAIN = "Copy the whole folder of shards there again."
"""What the owner of a remote folder must do where a file in it is damaged."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A folder that is read, and perhaps written, over the network.

    Attributes:
        scheme: One of `REMOTE_SCHEMES`.
        address: The whole address, without a final slash.
    """

    scheme: str
    address: str

    def __str__(self) -> str:
        """Give what was typed."""
        return self.address

    def locate(self, name: str) -> str:
        """Give the address of a file in the folder."""
        plain = name if self.scheme in WRITABLE_SCHEMES else quote(name)
        return f"{self.address}/{plain}"


def parse_address(text: str, *, what: str = "shards") -> Path | RemoteFolder:
    """Tell paths from addresses, and reject all schemes except `file` and `REMOTE_SCHEMES`.

    Libraries accept far more: `pipe:` runs a command, and chained addresses such as
    `simplecache::` or `reference://` open whatever they name.

    Args:
        text: What was typed.
        what: What is there, for errors.

    Raises:
        ConfigError: If the text is neither; nothing was opened.
    """
    try:
        return _parse(text)
    except _Refusal as refusal:
        shown, found = refusal.args
        raise ConfigError(
            f"{what} must be in a folder, or at an address of file, http, https, s3, gs or hf; "
            f"got {found} in {shown!r}. Name a folder or such an address; a path with a colon "
            "needs ./ before it."
        ) from None


class _Refusal(Exception):  # noqa: N818 - never leaves this file
    """A text that is no path and no address: what may be shown of it, and what is wrong."""


def _parse(text: str) -> Path | RemoteFolder:
    match = _SCHEME.match(text)
    if not match:
        if not text or "\0" in text:
            raise _Refusal(text, "no path")
        return Path(text)
    scheme = match[1].lower()
    if "::" in text:
        raise _Refusal(text, "a chain of addresses")
    if scheme not in ("file", *REMOTE_SCHEMES) or not text.startswith("://", match.end(1)):
        raise _Refusal(text, f"the scheme {scheme}:")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise _Refusal(text, "a space or a control character")
    rest = text[match.end(1) + len("://") :]
    return _local(text, rest) if scheme == "file" else _remote(text, scheme, rest)


def spelled(path: Path) -> str:
    """Write a path so that `parse_address` takes it for one."""
    return f"./{path}" if _SCHEME.match(str(path)) else str(path)


def is_inner(address: str) -> bool:
    """Whether an IP address is this machine's or in a private network."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        number = number.ipv4_mapped or number.sixtofour or number
    return not number.is_global


def _local(text: str, rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash or "%00" in path:
        raise _Refusal(text, "a file address that is not an absolute path")
    return Path(f"/{unquote(path)}")


def _remote(text: str, scheme: str, rest: str) -> RemoteFolder:
    host = rest.partition("/")[0]
    if "@" in host:
        raise _Refusal(f"{scheme}://...@{host.rpartition('@')[2]}", "credentials")
    if "?" in rest or "#" in rest:
        raise _Refusal(text, "a query or a fragment")
    try:
        named = urlsplit(f"{scheme}://{rest}").hostname
    except ValueError:
        named = None
    if not named:
        raise _Refusal(text, "no host or bucket")
    return RemoteFolder(scheme=scheme, address=f"{scheme}://{rest.rstrip('/')}")
