"""A local folder that keeps shards of remote ones, which processes may share.

A shard's name there is its sha256, so shards of different folders never collide.
"""

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.common import file_lock
from pipeline.common.atomic_io import atomic_write
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.index import ShardEntry
from pipeline.remote.address import COPY_AGAIN

_SHA256 = re.compile(r"[0-9a-f]{64}")

# What the threads of this process fetch at the moment, bytes by path: not there yet, but soon.
_ARRIVING: dict[Path, int] = {}

Fetch = Callable[[], Generator[bytes, None, None]]
"""Yields a shard's bytes from the first one on; a new stream at each call."""


def default_folder() -> Path:
    """Give the folder that keeps shards where none is named, among the user's other caches."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "srp/shards"


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """A folder of fetched shards.

    Attributes:
        folder: Where they are kept; made for the first one.
        limit_mib: Size of all that they should not exceed, MiB; None keeps all. A shard that is
            being read is never removed.
    """

    folder: Path
    limit_mib: int | None = None

    def __post_init__(self) -> None:
        """Check the settings before anything is fetched."""
        if self.limit_mib is not None and self.limit_mib < 1:
            raise ConfigError(
                f"the cache must hold at least 1 MiB; got {self.limit_mib}. Raise the limit."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(
                f"the cache must be a folder; got the file {self.folder}. Name another folder."
            )

    @property
    def limit_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.limit_mib is None else self.limit_mib * 2**20

    def path_of(self, shard: ShardEntry) -> Path:
        """Give the path of a shard in the cache.

        Raises:
            VerificationError: If the manifest's sha256, which becomes the name, is malformed.
        """
        if not _SHA256.fullmatch(shard.sha256):
            raise VerificationError(
                f"a sha256 must be 64 hex digits; got {shard.sha256!r} for {shard.name} in the "
                f"manifest. {COPY_AGAIN}"
            )
        return self.folder / f"{shard.sha256}.tar"

    def open(
        self, shard: ShardEntry, *, fetch: Fetch, address: str, stop: threading.Event
    ) -> BinaryIO:
        """Open a shard; fetch it first unless it is there with its full length.

        No process removes it while it is open. Close it with `release`.

        Args:
            shard: What to open.
            fetch: Fetches it; not called if the shard is in the cache.
            address: The shard's address, for errors.
            stop: Once set, waiting ends in CancelledError.

        Raises:
            ConfigError: If the cache is in a file system without locks.
            VerificationError: If the fetched bytes are not those of the manifest; they are removed.
        """
        path = self.path_of(shard)
        file = _open_whole(path, shard.num_bytes, stop)
        if file:
            return file
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{shard.sha256}.lock"), stop):
            # Another process may remove it before it is open here; then fetch it again.
            while not (file := _open_whole(path, shard.num_bytes, stop)):
                _ARRIVING[path] = shard.num_bytes
                try:
                    self._make_room()
                    self._fetch(path, shard, fetch, address)
                finally:
                    del _ARRIVING[path]
        return file

    def _fetch(self, path: Path, shard: ShardEntry, fetch: Fetch, address: str) -> None:
        for left in self.folder.glob(f".{path.name}.*.partial"):  # its writer was killed
            left.unlink(missing_ok=True)
        digest = hashlib.sha256()
        with (
            atomic_write(path, num_bytes=shard.num_bytes) as file,
            contextlib.closing(fetch()) as chunks,
        ):
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            if file.tell() != shard.num_bytes or digest.hexdigest() != shard.sha256:
                raise VerificationError(
                    f"a shard must arrive as it was written, {shard.num_bytes} bytes of sha256 "
                    f"{shard.sha256[:12]}; got {file.tell()} bytes of {digest.hexdigest()[:12]} "
                    f"from {address} (broken at or after offset 0). {COPY_AGAIN}"
                )

    def _make_room(self) -> None:
        """Remove the least recently used shards until there is room for those that arrive."""
        if self.limit_bytes is None:
            return
        found = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                if _SHA256.fullmatch(path.stem):
                    status = path.stat()
                    found.append((status.st_atime_ns, status.st_size, path))
        arriving = sum(
            size for path, size in _ARRIVING.copy().items() if path.parent == self.folder
        )
        excess = sum(size for _, size, _ in found) + arriving - self.limit_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            if _remove_unused(path):
                excess -= size


def release(file: BinaryIO) -> None:
    """Close what `ShardCache.open` gave."""
    if not file.closed:
        file_lock.unlock(file)
        file.close()


def _lock(file: BinaryIO, *, shared: bool = False, stop: threading.Event | None = None) -> bool:
    """Lock a file of the cache; see `file_lock.lock`.

    Raises:
        ConfigError: If the file system has no locks.
    """
    try:
        return file_lock.lock(file, shared=shared, stop=stop)
    except OSError as error:
        raise ConfigError(
            f"a cache must be in a file system with locks; got {error.strerror} for {file.name}. "
            "Name a folder on a disk of this machine, or read without a cache."
        ) from error


def _open_whole(path: Path, num_bytes: int, stop: threading.Event) -> BinaryIO | None:
    """Open a shard of the cache so that no process removes it, or return None if it is not there.

    A shard of another length counts as missing.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        _lock(file, shared=True, stop=stop)
        status = os.fstat(file.fileno())
        if status.st_nlink and status.st_size == num_bytes:  # not removed meanwhile, not cut
            with contextlib.suppress(OSError):  # a cache may be read-only
                # Its bytes keep their time, by which readers see that they did not change.
                os.utime(file.fileno(), ns=(time.time_ns(), status.st_mtime_ns))
            return file
    except BaseException:
        release(file)
        raise
    release(file)
    return None


def _remove_unused(path: Path) -> bool:
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return False
    try:
        is_unused = _lock(file)
        if is_unused:
            path.unlink(missing_ok=True)
        return is_unused
    finally:
        release(file)


@contextlib.contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    """Wait until no other reader fetches the same shard."""
    with path.open("wb") as file:
        _lock(file, stop=stop)
        try:
            yield
        finally:
            file_lock.unlock(file)
