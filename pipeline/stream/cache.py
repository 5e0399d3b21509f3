"""Shards fetched from a remote folder, kept in a local one, which processes may share.

A shard is kept under its sha256, so copies of different folders never meet. Locks are flock's:
they end with their process, whatever happens to it.
"""

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.common import file_lock
from pipeline.common.atomic_io import atomic_write
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.index import ShardEntry

_SHA256 = re.compile(r"[0-9a-f]{64}")

Fetch = Callable[[], Generator[bytes, None, None]]
"""Gives a shard's bytes from the first one on; a new stream at each call."""


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """A folder of fetched shards.

    Attributes:
        folder: Where they are kept; made when the first one comes.
        limit_mib: Size that they should not exceed together, MiB; None keeps all. Shards that
            are being read are kept in any case.
    """

    folder: Path
    limit_mib: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is fetched."""
        if self.limit_mib is not None and self.limit_mib < 1:
            raise ConfigError(f"the cache must hold at least 1 MiB; got {self.limit_mib}.")
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"the cache must be a folder; got the file {self.folder}. Move it.")

    def path_of(self, shard: ShardEntry) -> Path:
        """Say where a shard is kept.

        Raises:
            VerificationError: If its sha256, which becomes the name, is none.
        """
        if not _SHA256.fullmatch(shard.sha256):
            raise VerificationError(
                f"a sha256 must be 64 hex digits; got {shard.sha256!r} for {shard.name} in the "
                "manifest. Copy the whole folder of shards there again."
            )
        return self.folder / f"{shard.sha256}.tar"

    def open(
        self, shard: ShardEntry, *, fetch: Fetch, address: str, stop: threading.Event
    ) -> BinaryIO:
        """Open a shard; fetch it first if it is not there with its full length.

        While it is open nobody removes it. Close it with `release`.

        Args:
            shard: What must come.
            fetch: Its bytes from the store, not called where it is here already.
            address: Of the shard in the store, for errors.
            stop: Once set, waiting ends in CancelledError.

        Raises:
            ConfigError: If the cache is in a file system without locks.
            VerificationError: If other bytes came than were written; they are not kept.
        """
        path = self.path_of(shard)
        file = _open_whole(path, shard.num_bytes, stop)
        if file:
            return file
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{shard.sha256}.lock"), stop):
            # Another process may remove it again before it is open: each turn fetches anew.
            while not (file := _open_whole(path, shard.num_bytes, stop)):
                self._make_room(shard.num_bytes)
                self._fetch(path, shard, fetch, address)
        return file

    def _fetch(self, path: Path, shard: ShardEntry, fetch: Fetch, address: str) -> None:
        for left in self.folder.glob(f".{path.name}.*.partial"):  # whoever wrote it was killed
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
                    f"from {address} (broken at or after offset 0). "
                    "Copy the whole folder of shards there again."
                )

    def _make_room(self, num_bytes: int) -> None:
        """Remove the shards that were not used for longest until there is room for one more."""
        if self.limit_mib is None:
            return
        found = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                if _SHA256.fullmatch(path.stem):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) + num_bytes - self.limit_mib * 2**20
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
    """Open a kept shard that nobody can remove from now on, or say that there is none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        _lock(file, shared=True, stop=stop)
        status = os.fstat(file.fileno())
        if status.st_nlink and status.st_size == num_bytes:  # not removed meanwhile, not cut
            with contextlib.suppress(OSError):  # a cache that is only read has no use for it
                os.utime(path)
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
