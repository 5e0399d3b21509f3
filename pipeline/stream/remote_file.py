"""Files of a remote folder, read front to back through fsspec; lost connections are resumed."""

import functools
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

from pipeline.common.errors import ConfigError, DownloadError, SrpError, VerificationError
from pipeline.stream.address import COPY_AGAIN, RemoteFolder

TRIES = 5  # in a row without a byte
STORE_TRIES = 2  # the same for backends that retry by themselves
FIRST_WAIT_S = 0.5  # before the first retry; doubled before each further one
BLOCK_BYTES = 1 << 23  # of one request where a store is read by blocks
CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# Statuses of the 400s that a retry may change.
_TEMPORARY = frozenset((408, 425, 429))


class RemoteFile:
    """One file from some offset on. A retry starts at the offset that was reached.

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
        stop: threading.Event | None = None,
    ) -> None:
        """Name what to read; nothing is opened yet.

        Args:
            folder: Where the file is.
            name: Its name.
            num_bytes: Its length; None if unknown.
            start: Offset of the first byte to read.
            stop: Once set, reading ends in CancelledError.
        """
        self.address = folder.locate(name)
        self._folder = folder
        self._name = name
        self._num_bytes = num_bytes
        self._position = start
        self._stop = stop or threading.Event()
        self._file: Any = None
        self._num_failed = 0
        self._tries = TRIES if folder.scheme in ("http", "https") else STORE_TRIES

    def read(self, num_bytes: int) -> bytes:
        """Read at least one byte and at most `num_bytes`; none at the end."""
        while True:
            if self._stop.is_set():
                raise CancelledError
            try:
                if self._file is None:
                    self._file = self._open()
                data: bytes = self._file.read(num_bytes) if num_bytes else b""
            except SrpError:
                raise
            except Exception as error:  # each backend has its own tree of errors
                self._note_failure(error)
                continue
            self._position += len(data)
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

    def _open(self) -> Any:
        files = filesystem(self._folder.scheme)
        if self._folder.scheme in ("http", "https"):
            return self._open_http(files)
        file = files.open(self.address, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
        try:
            self._check_length(file.size)
            file.seek(self._position)
        except BaseException:
            file.close()
            raise
        return file

    def _open_http(self, files: Any) -> Any:
        """Request everything from the offset on; a server without ranges sends all of it."""
        headers = {"Range": f"bytes={self._position}-"} if self._position else {}
        # Block size 0 streams; the size only keeps fsspec from asking for it first.
        file = files.open(self.address, "rb", block_size=0, size=1, headers=headers)
        try:
            response = file.r
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
        status = getattr(error, "status", None)
        if status == 416 and self._position:
            raise wrong_length(self.address, self._position, int(self._num_bytes or 0)) from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(self.address) from error  # unlike a local one, without filename
        self._num_failed += 1
        is_refused = isinstance(status, int) and 400 <= status < 500 and status not in _TEMPORARY
        if self._num_failed >= self._tries or is_refused or isinstance(error, PermissionError):
            raise DownloadError(
                f"shards must be reachable; got {_reason(error)} from {self.address} at offset "
                f"{self._position}. Check the address, the network and your access to it."
            ) from error
        self._stop.wait(FIRST_WAIT_S * 2 ** (self._num_failed - 1))


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


@functools.cache
def _filesystem(scheme: str, _pid: int) -> Any:
    try:
        import fsspec

        if scheme in ("http", "https"):
            from pipeline.stream.http_session import make_session

            return fsspec.filesystem(scheme, get_client=make_session, skip_instance_cache=True)
        return fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError as error:
        if (error.name or "").startswith("pipeline"):
            raise
        raise ConfigError(
            f"an address of {scheme} needs packages that are not installed; got "
            f"{' '.join(str(error).split())}. Install them with: pip install 'srp[remote]'"
        ) from error


def _skip(file: Any, num_bytes: int) -> None:
    while num_bytes:
        data = file.read(min(num_bytes, CHUNK_BYTES))
        if not data:
            raise EOFError("the end before the offset")
        num_bytes -= len(data)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
