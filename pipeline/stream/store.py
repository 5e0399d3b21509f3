"""A folder of shards, local or remote: its manifest, and its shards read front to back."""

import io
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.index_file import LocalFiles
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.read.memory_map import check_length, fix_of
from pipeline.remote.address import COPY_AGAIN, RemoteFolder, parse_address, spelled
from pipeline.remote.pace import Link
from pipeline.remote.remote_file import RemoteFile, forget_listings
from pipeline.stream.cache import ShardCache, release

MAX_MANIFEST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened shard.

    Attributes:
        place: Its path or address, for errors.
        read: Reads at most so many bytes; none at the end.
        close: Closes it.
        fix: Says what helps if its bytes are not those that were written; asked when they are not.
    """

    place: str
    read: Callable[[int], bytes]
    close: Callable[[], None]
    fix: Callable[[], str]


class Store(Protocol):
    """A folder of shards, wherever it is."""

    @property
    def address(self) -> str:
        """The path or address that the user typed."""

    @property
    def fix(self) -> str:
        """What helps if a file of it is not what the manifest says."""

    def load_manifest(self) -> Manifest:
        """Read what the folder holds."""

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Read a small file; of one that is longer than `at_most` bytes, a little more than those.

        Raises:
            FileNotFoundError: If there is none.
        """

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        """Open a shard for reading from an offset on; give up once `stop` is set."""


def open_store(
    address: str | Path, *, cache: Path | None = None, cache_mib: int | None = None
) -> "LocalStore | RemoteStore":
    """Name a folder of shards. Nothing is read yet.

    Args:
        address: A path, or an address (see `parse_address`). A `Path` is always a path.
        cache: Folder that keeps remote shards; None reads them from the store each time.
        cache_mib: Size that the cache should not exceed, MiB; None keeps all.

    Raises:
        ConfigError: If the address or the cache cannot be used.
    """
    place = address if isinstance(address, Path) else parse_address(address)
    if isinstance(place, Path):
        return LocalStore(folder=manifests.find(place))
    if cache is None and cache_mib is not None:
        raise ConfigError(
            f"a limit of the cache needs a cache; got {cache_mib} MiB. Name a folder for the cache."
        )
    kept = ShardCache(folder=cache, limit_mib=cache_mib) if cache else None
    return RemoteStore(folder=place, cache=kept)


@dataclass(frozen=True, kw_only=True)
class LocalStore:
    """A folder on this machine."""

    folder: Path

    @property
    def address(self) -> str:
        """The folder's path."""
        return spelled(self.folder)

    @property
    def fix(self) -> str:
        """The command that rewrites what is missing or wrong."""
        return "Run the same srp-data build-shards command again to rewrite them."

    def load_manifest(self) -> Manifest:
        """Read what the folder holds; see `pipeline.format.manifest.load`."""
        return manifests.load(self.folder)

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Read a small file; see `Store.read_file`."""
        return LocalFiles(folder=self.folder).read_file(name, at_most=at_most)

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        """Open a shard, which does not wait for anything.

        Raises:
            VerificationError: If it is missing or has another length.
        """
        path = self.folder / shard.name
        check_length(path, shard)
        file = path.open("rb")
        file.seek(start)
        # A shard that is replaced while it is open is read to its end all the same.
        return Source(
            place=str(path), read=file.read, close=file.close, fix=partial(fix_of, path, shard)
        )


@dataclass(frozen=True, kw_only=True)
class RemoteStore:
    """A folder at an address, and perhaps a cache on this machine.

    Attributes:
        folder: The address.
        cache: What keeps fetched shards; None reads them from the address each time.
        link: What was measured of the connections to it.
    """

    folder: RemoteFolder
    cache: ShardCache | None
    link: Link = field(default_factory=Link, compare=False, repr=False)

    @property
    def address(self) -> str:
        """The folder's address."""
        return self.folder.address

    @property
    def fix(self) -> str:
        """What the folder's owner must do; nothing is written from here."""
        return COPY_AGAIN

    def load_manifest(self) -> Manifest:
        """Fetch the manifest.

        Raises:
            ConfigError: If the folder has no manifest, or one of another version.
            DownloadError: If it cannot be fetched.
            VerificationError: If it is damaged.
        """
        place = self.folder.locate(FILE_NAME)
        forget_listings(self.folder.scheme)
        try:
            data = self.read_file(FILE_NAME, at_most=MAX_MANIFEST_BYTES)
            if len(data) > MAX_MANIFEST_BYTES:
                raise _damaged(place, f"more than {MAX_MANIFEST_BYTES} bytes")
            return manifests.decode_manifest(data, self)
        except FileNotFoundError:
            raise ConfigError(
                f"shards must have a {FILE_NAME}; got none at {self.address}. "
                "Name the folder that holds it."
            ) from None
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise _damaged(place, f"{type(error).__name__}: {error}") from error

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Fetch a small file; see `Store.read_file`.

        Raises:
            DownloadError: If it cannot be fetched.
        """
        data = bytearray()
        with closing(RemoteFile(self.folder, name, num_bytes=None)) as file:
            for chunk in file.chunks():
                data += chunk
                if len(data) > at_most:
                    break
        return bytes(data)

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        """Open a shard in the cache, or at its address if there is no cache.

        Raises:
            DownloadError: If it cannot be fetched.
            VerificationError: If it is missing or is not what the manifest says.
        """
        if self.cache:
            file = self.open_kept(shard, stop=stop)
            file.seek(start)
            path = self.cache.path_of(shard)
            return Source(
                place=str(path), read=file.read, close=partial(release, file),
                fix=lambda: fix_of_kept(path),
            )  # fmt: skip
        remote = self._file_of(shard, start=start, stop=stop)
        try:
            remote.connect()
        except FileNotFoundError:
            raise self._missing(shard) from None
        return Source(
            place=remote.address, read=remote.read, close=remote.close, fix=lambda: COPY_AGAIN
        )

    def has_ranges(self) -> bool:
        """Whether the store sends a part of a file; a plain web server sends the whole one.

        Raises:
            DownloadError: If it cannot be reached.
        """
        with closing(RemoteFile(self.folder, FILE_NAME, num_bytes=None, end=1)) as file:
            if not file.is_part:
                with suppress(FileNotFoundError):  # the caller may have the manifest from elsewhere
                    file.connect()
            return file.is_part

    def fetch(self, shard: ShardEntry, *, start: int, end: int, stop: threading.Event) -> Source:
        """Fetch a part of a shard into memory.

        Args:
            shard: What to fetch of.
            start: Offset of the part's first byte.
            end: Offset of the first byte after it; one after the shard's end finds what follows.
            stop: Once set, fetching ends in CancelledError.

        Raises:
            DownloadError: If it cannot be fetched.
            VerificationError: If the shard is missing or has another length.
        """
        with closing(self._file_of(shard, start=start, end=end, stop=stop)) as remote:
            try:
                data = io.BytesIO(b"".join(remote.chunks()))
            except FileNotFoundError:
                raise self._missing(shard) from None
        return Source(
            place=remote.address, read=data.read, close=data.close, fix=lambda: COPY_AGAIN
        )

    def open_kept(self, shard: ShardEntry, *, stop: threading.Event) -> BinaryIO:
        """Open a shard in the cache, fetched before if it is not there; see `ShardCache.open`.

        Raises:
            DownloadError: If it cannot be fetched.
            VerificationError: If it is missing or is not what the manifest says.
        """
        if self.cache is None:
            raise RuntimeError("a store without a cache")

        def fetch() -> Generator[bytes, None, None]:
            with closing(self._file_of(shard, start=0, stop=stop)) as remote:
                yield from remote.chunks()

        address = self.folder.locate(shard.name)
        try:
            return self.cache.open(shard, fetch=fetch, address=address, stop=stop)
        except FileNotFoundError as error:
            if error.filename is not None:  # the cache's, not the store's
                raise
            raise self._missing(shard) from None

    def _missing(self, shard: ShardEntry) -> VerificationError:
        return VerificationError(
            "every shard of the manifest must be there; got none at "
            f"{self.folder.locate(shard.name)}. {COPY_AGAIN}"
        )

    def _file_of(
        self, shard: ShardEntry, *, start: int, end: int | None = None, stop: threading.Event
    ) -> RemoteFile:
        return RemoteFile(
            self.folder, shard.name, num_bytes=shard.num_bytes, start=start, end=end, stop=stop,
            link=self.link,
        )  # fmt: skip


def fix_of_kept(path: Path) -> str:
    """Return the fix of an error in a cached shard's bytes."""
    return f"Remove {path} and run the command again."


def _damaged(place: str, what: str) -> VerificationError:
    return VerificationError(f"a manifest must be whole; got {what} in {place}. {COPY_AGAIN}")
