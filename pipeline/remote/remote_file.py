"""Files of a remote folder, read front to back through fsspec; lost connections are resumed."""

import errno
import functools
import io
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

from pipeline.common.errors import ConfigError, DownloadError, SrpError, VerificationError
from pipeline.remote.address import COPY_AGAIN, RemoteFolder
from pipeline.remote.pace import Link

TRIES = 5  # in a row without a byte
STORE_TRIES = 2  # the same for backends that retry by themselves
FIRST_WAIT_S = 0.5  # before the first retry, on average; doubled before each further one
LONGEST_WAIT_S = 60.0  # that a server may ask for
HUB_SILENCE_S = 120.0  # in which Hugging Face sends or takes nothing
BLOCK_BYTES = 1 << 23  # of one request where a store is read by blocks
CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_RATE_LIMIT = re.compile(r"\br=0;\s*t=(\d+)")  # none left, and the seconds until there are
# Hugging Face's file reads 5 MiB ahead otherwise, which nobody would use.
_PART_OPTIONS: dict[str, dict[str, str]] = {"hf": {"cache_type": "none"}}
# Statuses of the 400s that a retry may change.
_TEMPORARY = frozenset((408, 425, 429))
# Of the system, not seeded: many processes that a server failed together must not retry together.
_CHANCE = random.SystemRandom()


class RemoteFile:
    """One file, or a part of it. A retry starts at the offset that was reached.

    Attributes:
        address: Of the file.
        is_part: Whether the server sends the part that was asked for, and not the whole file.

    Raises, from `read`:
        FileNotFoundError: If there is no such file.
        DownloadError: If it cannot be fetched.
        VerificationError: If it has another length than is expected.
    """

    def __init__(
        self,
        folder: RemoteFolder,
        name: str,
        *,
        num_bytes: int | None,
        start: int = 0,
        end: int | None = None,
        stop: threading.Event | None = None,
        link: Link | None = None,
    ) -> None:
        """Name what to read; nothing is opened yet.

        Args:
            folder: Where the file is.
            name: Its name.
            num_bytes: Its length; None if unknown.
            start: Offset of the first byte to read.
            end: Offset of the first byte not to read; None reads to the end of the file.
            stop: Once set, reading ends in CancelledError.
            link: Notes how fast the connections were.
        """
        self.address = folder.locate(name)
        self.is_part = folder.scheme not in ("http", "https")
        self._folder = folder
        self._name = name
        self._num_bytes = num_bytes
        self._position = start
        self._end = end
        self._link = link or Link()
        self._num_received, self._latency_s, self._later_s = 0, 0.0, 0.0  # of this connection
        self._stop = stop or threading.Event()
        self._file: Any = None
        self._num_failed = 0
        self._tries = TRIES if folder.scheme in ("http", "https") else STORE_TRIES

    def read(self, num_bytes: int) -> bytes:
        """Read at least one byte and at most `num_bytes`; none at the end."""
        if self._end is not None:
            num_bytes = min(num_bytes, self._end - self._position)
        while True:
            if self._stop.is_set():
                raise CancelledError
            began_s = time.monotonic()
            try:
                if self._file is None:
                    self._file = self._open()
                data: bytes = self._file.read(num_bytes) if num_bytes else b""
            except SrpError:
                raise
            except Exception as error:  # each backend has its own tree of errors
                self._note_failure(error)
                continue
            self._note_received(len(data), time.monotonic() - began_s)
            if data:
                self._num_failed = 0
            elif num_bytes and self._num_bytes is not None and self._position < self._num_bytes:
                self._note_end()
                continue
            return data

    def connect(self) -> None:
        """Open the connection now, so that the first read need not wait."""
        self.read(0)

    def chunks(self) -> Iterator[bytes]:
        """Read to the end."""
        while data := self.read(CHUNK_BYTES):
            yield data

    def close(self) -> None:
        """Close the connection."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._num_received:
            self._link.note(
                latency_s=self._latency_s, num_bytes=self._num_received, seconds=self._later_s
            )
        self._num_received, self._latency_s, self._later_s = 0, 0.0, 0.0

    def _note_received(self, num_bytes: int, seconds: float) -> None:
        if self._num_received:
            self._later_s += seconds
        else:
            self._latency_s += seconds
        self._num_received += num_bytes
        self._position += num_bytes

    def _open(self) -> Any:
        files = filesystem(self._folder.scheme)
        if self._folder.scheme in ("http", "https"):
            return self._open_http(files)
        if self._end is not None:  # one request, without asking for the length before
            options = _PART_OPTIONS.get(self._folder.scheme, {})
            part = files.cat_file(self.address, start=self._position, end=self._end, **options)
            return io.BytesIO(part)
        file = files.open(self.address, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
        try:
            self._check_length(file.size)
            file.seek(self._position)
        except BaseException:
            file.close()
            raise
        return file

    def _open_http(self, files: Any) -> Any:
        """Request what is left of the part; a server without ranges sends the whole file."""
        last = "" if self._end is None else self._end - 1
        is_whole = self._end is None and not self._position
        headers = {} if is_whole else {"Range": f"bytes={self._position}-{last}"}
        # Block size 0 streams; the size only keeps fsspec from asking for it first.
        file = files.open(self.address, "rb", block_size=0, size=1, headers=headers)
        try:
            response = file.r
            self.is_part = response.status == 206
            if response.status == 206:
                match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if not match or int(match[1]) != self._position:
                    raise OSError("another range than was requested")
                self._check_length(None if match[2] == "*" else int(match[2]))
            elif response.status == 200:
                self._check_length(response.content_length)
                _skip(file, self._position)
            else:
                raise OSError(f"HTTP status {response.status}")
        except BaseException:
            file.close()
            raise
        return file

    def _check_length(self, announced: int | None) -> None:
        if None not in (announced, self._num_bytes) and announced != self._num_bytes:
            raise wrong_length(self.address, int(announced or 0), int(self._num_bytes or 0))

    def _note_end(self) -> None:
        """Retry once where the file seems to end too early."""
        self.close()
        self._num_failed += 1
        if self._num_failed > 1:
            raise wrong_length(self.address, self._position, int(self._num_bytes or 0))

    def _note_failure(self, error: Exception) -> None:
        """Wait before the next retry.

        Raises:
            DownloadError: If there is no further retry.
            FileNotFoundError, VerificationError: As `read`.
        """
        self.close()
        status = status_of(error)
        is_beyond = status == 416 or (self._end and getattr(error, "errno", None) == errno.EINVAL)
        if is_beyond and self._position:  # s3fs turns the status into EINVAL
            raise wrong_length(self.address, self._position, int(self._num_bytes or 0)) from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(self.address) from error  # unlike a local one, without filename
        self._num_failed += 1
        is_refused = status is not None and 400 <= status < 500 and status not in _TEMPORARY
        if self._num_failed >= self._tries or is_refused or isinstance(error, PermissionError):
            raise DownloadError(
                f"shards must be reachable; got {_reason(error)} from {self.address} at offset "
                f"{self._position}. Check the address, the network and your access to it."
            ) from error
        asked_s = asked_wait_s(error)
        self._stop.wait(wait_s(self._num_failed, asked_s=asked_s, chance=_CHANCE.random()))


def wait_s(num_failed: int, *, asked_s: float, chance: float) -> float:
    """Give the time to wait before a retry, s.

    It doubles each time, and is drawn from half to one and a half of that, so that readers whose
    requests failed together do not retry together. A server that asks for a longer wait gets it, up
    to `LONGEST_WAIT_S`, and up to half of it more.

    Args:
        num_failed: Tries that have failed in a row, at least 1.
        asked_s: What the server asks for, s.
        chance: Drawn from 0 to 1.
    """
    spread = 0.5 + chance
    backoff_s = FIRST_WAIT_S * 2.0 ** (num_failed - 1) * spread
    return max(backoff_s, min(asked_s, LONGEST_WAIT_S) * max(1.0, spread))


def status_of(error: Exception) -> int | None:
    """Give the HTTP status in a backend's error; None if it holds none."""
    response = getattr(error, "response", None)
    found = (
        getattr(error, "status", None)  # aiohttp's
        or getattr(error, "code", None)  # gcsfs's
        or getattr(response, "status_code", None)  # Hugging Face's
    )
    return found if isinstance(found, int) else None


def asked_wait_s(error: Exception) -> float:
    """Give the wait that a server asks for, s: by Retry-After, or by the RateLimit of the Hub.

    A date asks for nothing.
    """
    response = getattr(error, "response", None)
    headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
    limited = _RATE_LIMIT.search(str(headers.get("RateLimit", "")))
    asked = limited[1] if limited else str(headers.get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else 0.0


def wrong_length(place: str, num_bytes: int, expected: int) -> VerificationError:
    """Make the error of a remote shard whose length is not the one that was written."""
    return VerificationError(
        f"a shard must have the length that was written; got {num_bytes} bytes, not {expected}, "
        f"in {place} (broken from offset {min(num_bytes, expected)}). {COPY_AGAIN}"
    )


def filesystem(scheme: str) -> Any:
    """Give this process's fsspec file system for a scheme.

    Raises:
        ConfigError: If its backend is not installed.
    """
    return _filesystem(scheme, os.getpid())  # connections do not survive a fork


def forget_listings(scheme: str) -> None:
    """Drop what a store has told of its folders: another process may have written there since.

    Raises:
        ConfigError: If its backend is not installed.
    """
    filesystem(scheme).dircache.clear()


@functools.cache
def _filesystem(scheme: str, _pid: int) -> Any:
    try:
        import fsspec

        if scheme in ("http", "https"):
            from pipeline.remote.http_session import make_session

            return fsspec.filesystem(scheme, get_client=make_session, skip_instance_cache=True)
        options: dict[str, Any] = {}
        if scheme == "gs":
            from pipeline.remote.gs_session import session_options

            # It would ask for each bucket's kind by another protocol, and warn without credentials.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            for package in ("gcsfs", "google.auth"):  # they log what they raise
                logging.getLogger(package).setLevel(logging.CRITICAL)
            options["session_kwargs"] = session_options()
        elif scheme == "s3":
            # Some stores (rclone's) give the checksum of a whole object with a part of it. What is
            # read in parts has digests of its own.
            os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        elif scheme == "hf":
            _prepare_hub()
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        if (error.name or "").startswith("pipeline"):
            raise
        raise ConfigError(
            f"an address of {scheme} needs packages that are not installed; got "
            f"{' '.join(str(error).split())}. Install them with: pip install 'srp[remote]'"
        ) from error


def _prepare_hub() -> None:
    """Let the client of Hugging Face end a silent connection, and print no bar of each file.

    Nor does it say that a commit would change nothing, as one that is sent again may.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    get_session().timeout = HUB_SILENCE_S  # it has none by itself
    if not are_progress_bars_disabled():
        disable_progress_bars()
    logging.getLogger("huggingface_hub.hf_api").setLevel(logging.ERROR)


def _skip(file: Any, num_bytes: int) -> None:
    while num_bytes:
        data = file.read(min(num_bytes, CHUNK_BYTES))
        if not data:
            raise EOFError("the end before the offset")
        num_bytes -= len(data)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
