"""Shards as memory maps. The length of a file is checked before each use.

`MappedShards` maps those of a local folder; `pipeline.stream.fetched` fetches others before.
"""

import mmap
import os
import resource
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import still_names
from pipeline.format.ustar import TAR_END
from pipeline.pixels import Pixels

_SPARE_FILES = 64  # file descriptors that the rest of a process may still need


class Ahead(Protocol):
    """What happens to shards while batches that need them are read in order."""

    def wait(self, shards_B: NDArray[np.int64]) -> None:
        """Wait until the shards of a batch's samples are on this machine.

        Raises:
            CancelledError: If the reading has ended meanwhile.
            DownloadError, VerificationError: If one of them cannot be fetched.
        """

    def done(self) -> None:
        """Note that the oldest batch was used: shards that no later one needs may go."""


class ShardBytes(Protocol):
    """The bytes of some shards; `number` is a shard's position among them.

    A view of them stays valid while it is referred to, whatever happens to the shard.
    """

    @property
    def num_unmapped(self) -> int:
        """Count the shards whose files are not open yet."""

    @property
    def limit_bytes(self) -> int | None:
        """Bytes that may be on this machine at once; None for all."""

    @property
    def waited_s(self) -> float:
        """Time that readers of this process have waited for shards so far, s."""

    @property
    def fetched_bytes(self) -> int:
        """Bytes that this process has fetched from elsewhere so far."""

    def written_ns(self, number: int) -> int:
        """Check a shard's file, and say when it was last written, by the system's clock, ns."""

    def fix_of(self, number: int) -> str:
        """Return the fix of an error in a shard's bytes."""

    def bytes_of(self, number: int) -> Pixels:
        """View a whole shard, uint8."""

    def ahead(self, shard_batches: Iterable[NDArray[np.int64]]) -> AbstractContextManager[Ahead]:
        """Prepare for batches in order, each given as the shards of its samples."""


class _AllHere:
    """Shards of a local folder."""

    def wait(self, shards_B: NDArray[np.int64]) -> None:
        """They are here."""

    def done(self) -> None:
        """They stay."""


class MappedShards:
    """The bytes of some shards of a local folder, each mapped on first use.

    Safe to share among threads, and to send to other processes, which map the shards again.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardEntry]) -> None:
        """Check that every shard exists with its full length.

        Args:
            folder: Folder of the shards.
            shards: Shards to map; `number` is a position among them.

        Raises:
            ConfigError: If the process may not open as many files.
            VerificationError: If a shard is missing or has another length.
        """
        self._shards = tuple(shards)
        self._paths = tuple(os.fspath(folder / shard.name) for shard in self._shards)
        for path, shard in zip(self._paths, self._shards, strict=True):
            check_length(path, shard)
        self._set_up()

    def _set_up(self) -> None:
        """Initialise the state of this process."""
        self._maps: dict[int, Pixels] = {}
        self._lock = threading.Lock()
        reserve_files(self, len(self._shards))

    limit_bytes = None
    waited_s = 0.0
    fetched_bytes = 0

    @property
    def num_unmapped(self) -> int:
        """Count the shards whose files are not open yet."""
        return len(self._shards) - len(self._maps)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards, "_paths": self._paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    def written_ns(self, number: int) -> int:
        """Check a shard's file: reading past the end of a cut one would kill the process.

        Returns:
            Time of the last write, by the system's clock, ns.

        Raises:
            VerificationError: If it is missing or has another length.
        """
        return check_length(self._paths[number], self._shards[number])

    def fix_of(self, number: int) -> str:
        """Return the fix of an error in a shard's bytes."""
        return fix_of(self._paths[number], self._shards[number])

    def bytes_of(self, number: int) -> Pixels:
        """View a whole shard, uint8; it is mapped on first use."""
        mapped = self._maps.get(number)
        return self._map(number) if mapped is None else mapped

    def ahead(self, shard_batches: Iterable[NDArray[np.int64]]) -> AbstractContextManager[Ahead]:
        """Prepare nothing: all shards are here."""
        return nullcontext(_AllHere())

    def _map(self, number: int) -> Pixels:
        with self._lock:
            if number not in self._maps:
                with open(self._paths[number], "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._maps[number] = np.frombuffer(mapped, np.uint8)
            return self._maps[number]


def check_length(path: str | Path, shard: ShardEntry) -> int:
    """Check that a shard exists with its full length.

    Returns:
        Time of the last write, by the system's clock, ns.

    Raises:
        VerificationError: If it is missing or has another length.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise VerificationError(
            f"every shard of the manifest must be there; got none at {path}. {fix_of(path, shard)}"
        ) from None
    if found.st_size != shard.num_bytes:
        raise VerificationError(
            f"a shard must have the length that was written; got {found.st_size} bytes, not "
            f"{shard.num_bytes}, in {path} (broken from offset {_break_of(shard, found.st_size)}). "
            f"{fix_of(path, shard)}"
        )
    return found.st_mtime_ns


def fix_of(path: str | Path, shard: ShardEntry) -> str:
    """Return the fix of an error in a shard's file."""
    if still_names(Path(path).parent, shard):
        return "Run the same srp-data build-shards command again to rebuild the shard."
    return (
        "The folder was rebuilt or deleted while it was read. Run this command again when "
        "srp-data build-shards is done."
    )


def _break_of(shard: ShardEntry, size: int) -> str:
    """Say at which offset and sample a shard of another length is broken."""
    offset = min(size, shard.num_bytes)
    samples = shard.samples.in_memory()
    row = int(np.searchsorted(samples.offsets_N, offset, side="right")) - 1
    if row < 0 or offset >= shard.num_bytes - len(TAR_END):
        return f"{offset}, past its samples"
    return f"{offset}, sample {samples.key(row)}"


# The readers of this process. A shard is opened when it is first read, so more files will be open.
_LIVING: "weakref.WeakSet[ShardBytes]" = weakref.WeakSet()
_LIVING_LOCK = threading.Lock()


def reserve_files(mapped: ShardBytes, count: int) -> None:
    """Raise this process's limit on open files for the shards of a new reader.

    Raises:
        ConfigError: If the system's limit is lower.
    """
    with _LIVING_LOCK:
        _allow_files(count)
        _LIVING.add(mapped)


def _open_files() -> int:
    """Count the files that are open in this process, and those that its readers will open."""
    unmapped = sum(mapped.num_unmapped for mapped in _LIVING)
    try:
        return len(os.listdir("/dev/fd")) + unmapped
    except OSError:  # some containers lack it
        return unmapped


def _allow_files(count: int) -> None:
    """Raise this process's limit on open files by the number of new shards.

    Raises:
        ConfigError: If the system's limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    allowed = min(soft + count, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    others = _open_files()  # which opens a file itself
    needed = others + count + _SPARE_FILES
    if most < needed:
        raise ConfigError(
            f"the limit on open files must allow every shard; got {most} for {count} shards, "
            f"{others} other files and {_SPARE_FILES} to spare. "
            "Raise it with ulimit -n, or build shards with a larger --shard-mib."
        )
    if allowed < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
