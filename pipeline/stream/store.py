"""A folder of shards, wherever it lies: its manifest, and its shards front to back."""

import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.read.memory_map import check_length, fix_of
from pipeline.stream.address import RemoteFolder, parse_address
from pipeline.stream.cache import ShardCache, release
from pipeline.stream.remote_file import RemoteFile

MAX_MANIFEST_BYTES = 1 << 30
COPY_AGAIN = "Copy the whole folder of shards there again."


class Source(Protocol):
    """A shard that is being read.

    Attributes:
        place: Its path or address, for errors.
    """

    place: str

    @property
    def fix(self) -> str:
        """What helps if its bytes are not those that were written."""

    def read(self, num_bytes: int) -> bytes:
        """Read at most so many bytes; none at the end."""

    def close(self) -> None:
        """Let it go."""


class Store(Protocol):
    """A folder of shards."""

    @property
    def address(self) -> str:
        """What its user calls it."""

    @property
    def fix(self) -> str:
        """What helps where a file of it is not what the manifest says."""

    def load_manifest(self) -> Manifest:
        """Read what the folder holds."""

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Read a small file whole, or the start of one that is longer than `at_most` bytes.

        Raises:
            FileNotFoundError: If there is none.
        """

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        """Open a shard for reading from an offset on; give up once `stop` is set."""


def open_store(
    address: str | Path, *, cache: Path | None = None, cache_mib: int | None = None
) -> Store:
    """Name a folder of shards. Nothing is read yet.

    Args:
        address: An address of file, http, https, s3 or gs, or a path, which a Path always is.
        cache: Folder that remote shards are kept in; None reads them from the store each time.
        cache_mib: Size that the cache should not exceed, MiB; None keeps all.

    Raises:
        ConfigError: If the address or the cache cannot be used.
    """
    place = address if isinstance(address, Path) else parse_address(address)
    if isinstance(place, Path):
        return LocalStore(folder=manifests.find(place))
    if cache is None and cache_mib is not None:
        raise ConfigError(f"a size of the cache needs a cache; got {cache_mib} MiB. Name a folder.")
    kept = ShardCache(folder=cache, limit_mib=cache_mib) if cache else None
    return RemoteStore(folder=place, cache=kept)


@dataclass(frozen=True, kw_only=True)
class LocalStore:
    """A folder of this machine."""

    folder: Path

    @property
    def address(self) -> str:
        """The folder's path."""
        return str(self.folder)

    @property
    def fix(self) -> str:
        """The command that writes what is missing or wrong anew."""
        return "Run the same srp-data build-shards command again to write them anew."

    def load_manifest(self) -> Manifest:
        """Read what the folder holds; see `pipeline.format.manifest.load`."""
        return manifests.load(self.folder)

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Read a small file; see `Store.read_file`."""
        with (self.folder / name).open("rb") as file:
            return file.read(at_most + 1)

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        """Open a shard; a local file needs no giving up.

        Raises:
            VerificationError: If it is missing or has another length.
        """
        path = self.folder / shard.name
        check_length(path, shard)
        file = path.open("rb")
        file.seek(start)
        return _LocalSource(file, path, shard)


@dataclass(frozen=True, kw_only=True)
class RemoteStore:
    """A folder of another machine, and perhaps a cache on this one."""

    folder: RemoteFolder
    cache: ShardCache | None

    @property
    def address(self) -> str:
        """The folder's address."""
        return self.folder.address

    @property
    def fix(self) -> str:
        """What its owner must do; nothing can be written from here."""
        return COPY_AGAIN

    def load_manifest(self) -> Manifest:
        """Fetch what the folder holds.

        Raises:
            ConfigError: If the folder has no manifest, or one of another version.
            DownloadError: If it cannot be fetched.
            VerificationError: If it is damaged.
        """
        place = self.folder.locate(FILE_NAME)
        try:
            data = self.read_file(FILE_NAME, at_most=MAX_MANIFEST_BYTES)
            if len(data) > MAX_MANIFEST_BYTES:
                raise _damaged(place, f"more than {MAX_MANIFEST_BYTES} bytes")
            return manifests.from_json(data)
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
        file = RemoteFile(self.folder, name, num_bytes=None)
        data = bytearray()
        try:
            for chunk in file.chunks():
                data += chunk
                if len(data) > at_most:
                    break
        finally:
            file.close()
        return bytes(data)

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        """Open a shard in the cache, or at the store if there is none.

        Raises:
            DownloadError: If it cannot be fetched.
            VerificationError: If it is missing or is not what the manifest says.
        """
        try:
            if self.cache:
                return self._open_kept(self.cache, shard, start=start, stop=stop)
            remote = self._file_of(shard, start=start, stop=stop)
            remote.connect()
        except FileNotFoundError as error:
            if error.filename is not None:  # the cache's, not the store's
                raise
            raise VerificationError(
                "every shard of the manifest must be there; got none at "
                f"{self.folder.locate(shard.name)}. {COPY_AGAIN}"
            ) from None
        return _RemoteSource(remote)

    def _open_kept(
        self, cache: ShardCache, shard: ShardEntry, *, start: int, stop: threading.Event
    ) -> Source:
        def fetch() -> Generator[bytes, None, None]:
            with closing(self._file_of(shard, start=0, stop=stop)) as remote:
                yield from remote.chunks()

        file = cache.open(shard, fetch=fetch, address=self.folder.locate(shard.name), stop=stop)
        file.seek(start)
        return _KeptSource(file, cache.path_of(shard))

    def _file_of(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> RemoteFile:
        return RemoteFile(
            self.folder, shard.name, num_bytes=shard.num_bytes, start=start, stop=stop
        )


def _damaged(place: str, what: str) -> VerificationError:
    return VerificationError(f"a manifest must be whole; got {what} in {place}. {COPY_AGAIN}")


class _LocalSource:
    """A shard of a local folder; one that is replaced meanwhile is read to its end all the same."""

    def __init__(self, file: BinaryIO, path: Path, shard: ShardEntry) -> None:
        self.place = str(path)
        self._file = file
        self._shard = shard

    @property
    def fix(self) -> str:
        return fix_of(self.place, self._shard)

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def close(self) -> None:
        self._file.close()


class _KeptSource:
    """A shard in the cache, which may be removed once it is closed."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.place = str(path)
        self.fix = f"Remove {path} and run the command again."
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def close(self) -> None:
        release(self._file)


class _RemoteSource:
    fix = COPY_AGAIN

    def __init__(self, file: RemoteFile) -> None:
        self.place = file.address
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def close(self) -> None:
        self._file.close()
