"""The index of one shard as a file next to it, read and checked when it is first needed.

The manifest of many samples names these files by length and SHA-256 in place of holding what they
hold. The last few are kept in memory, so a reader of shards one after another needs as much memory
for a billion samples as for a million.
"""

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import msgspec

from pipeline.common.errors import VerificationError
from pipeline.format.index import (
    Columns,
    SampleEntry,
    SampleIndex,
    ShardEntry,
    check_index,
    check_labels,
    check_name,
    columns_of,
)

KEPT_SAMPLES = 200_000  # in the indexes that a process keeps; they take about 20 MB
MAX_INDEX_BYTES = 1 << 30
_KEPT_FILES = 2  # at least: of the shard that is read, and of the next one


class Files(Protocol):
    """The files of a folder of shards, wherever it is."""

    @property
    def address(self) -> str:
        """The folder's path or address, for errors."""

    @property
    def fix(self) -> str:
        """What helps if a file of it is not what the manifest says."""

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Read a small file; of one that is longer than `at_most` bytes, a little more than those.

        Raises:
            FileNotFoundError: If there is none.
        """


@dataclass(frozen=True, kw_only=True)
class LocalFiles:
    """The files of a folder on this machine."""

    folder: Path

    @property
    def address(self) -> str:
        """The folder's path."""
        return str(self.folder)

    @property
    def fix(self) -> str:
        """The command that rewrites what is missing or wrong."""
        return (
            "Run the same srp-data build-shards command again to rewrite it, or this command "
            "again if the folder was rebuilt meanwhile."
        )

    def read_file(self, name: str, *, at_most: int) -> bytes:
        """Read a small file; see `Files.read_file`."""
        with (self.folder / name).open("rb") as file:
            return file.read(at_most + 1)


class ShardRow(msgspec.Struct, frozen=True):
    """A shard's entry in a manifest that names index files."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str


class IndexDigest(NamedTuple):
    """Length, bytes, and SHA-256 of an index file."""

    num_bytes: int
    sha256: str


def digest_of(index: bytes) -> IndexDigest:
    """Say what an index file must be."""
    return IndexDigest(len(index), hashlib.sha256(index).hexdigest())


def index_name(shard_name: str) -> str:
    """Name the index file of a shard, such as `train-000000.index.json`."""
    return f"{shard_name.removesuffix('.tar')}.index.json"


def encode_index(samples: SampleIndex) -> bytes:
    """Write an index as JSON on one line; equal indexes give equal bytes."""
    return msgspec.json.encode(columns_of(samples)) + b"\n"


def encode_row(shard: ShardEntry) -> msgspec.Raw:
    """Write a shard's entry, with the digest of its index, as JSON on one line."""
    samples = shard.samples
    if isinstance(samples, StoredIndex):
        digest = samples.digest
    else:
        digest = digest_of(encode_index(samples))
    return msgspec.Raw(msgspec.json.encode(row_of(shard, digest)))


def row_of(shard: ShardEntry, digest: IndexDigest) -> ShardRow:
    """Make a shard's entry in a manifest that names index files."""
    return ShardRow(
        name=shard.name,
        split=shard.split,
        samples=len(shard.samples),
        bytes=shard.num_bytes,
        sha256=shard.sha256,
        index_bytes=digest.num_bytes,
        index_sha256=digest.sha256,
    )


def decode_row(data: msgspec.Raw, indexes: "IndexFiles") -> ShardEntry:
    """Read a shard's entry; its index file is not opened yet.

    Args:
        data: JSON, not parsed yet.
        indexes: What reads the folder's index files.

    Raises:
        ValueError: If a field is not what a build writes.
    """
    row = msgspec.json.decode(data, type=ShardRow)
    if min(row.samples, row.bytes, row.index_bytes) < 0 or row.index_bytes > MAX_INDEX_BYTES:
        raise ValueError(
            f"a negative number, or an index of {row.index_bytes} bytes, in {row.name}"
        )
    check_name(row.name)
    return ShardEntry(
        name=row.name,
        split=sys.intern(row.split),
        num_bytes=row.bytes,
        sha256=row.sha256,
        samples=StoredIndex(row, indexes),
    )


class StoredIndex(Sequence[SampleEntry]):
    """A shard's samples whose index is a file of its own: only their number is in memory.

    Whatever else is asked for reads that file, unless it is among the last ones.
    """

    __slots__ = ("_files", "_row")

    def __init__(self, row: ShardRow, files: "IndexFiles") -> None:
        """Keep the shard's row of the manifest, and what reads the file."""
        self._row, self._files = row, files

    @property
    def digest(self) -> IndexDigest:
        """What the file must be."""
        return IndexDigest(self._row.index_bytes, self._row.index_sha256)

    def in_memory(self) -> SampleIndex:
        """Give the columns.

        Raises:
            DownloadError: If their file cannot be fetched.
            VerificationError: If it is not the one that the manifest names.
        """
        return self._files.load(self._row)

    def __len__(self) -> int:
        return self._row.samples

    @overload
    def __getitem__(self, index: int) -> SampleEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SampleEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> SampleEntry | tuple[SampleEntry, ...]:
        return self.in_memory()[index]

    def __iter__(self) -> Iterator[SampleEntry]:
        return iter(self.in_memory())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredIndex):
            return self.digest == other.digest
        return isinstance(other, SampleIndex) and self.in_memory() == other

    def __hash__(self) -> int:
        return hash(self.digest)


class IndexFiles:
    """The index files of a folder; what they hold is kept for the last ones.

    Safe to share among threads, and to send to other processes, which read the files again.
    """

    def __init__(self, files: Files, *, suffixes: tuple[str, ...], num_classes: int) -> None:
        """Name the folder; nothing is read yet.

        Args:
            files: The folder's files.
            suffixes: A sample's members in tar order.
            num_classes: Classes that labels may name.
        """
        self._files, self._suffixes, self._num_classes = files, suffixes, num_classes
        self._set_up()

    def _set_up(self) -> None:
        """Initialise the state of this process."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, SampleIndex] = OrderedDict()
        self._num_kept = 0

    def __getstate__(self) -> Mapping[str, Any]:
        own = ("_lock", "_kept", "_num_kept")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    def load(self, row: ShardRow) -> SampleIndex:
        """Give the index of a shard.

        Raises:
            DownloadError: If its file cannot be fetched.
            VerificationError: If it is not the one that the manifest names.
        """
        with self._lock:
            if row.name in self._kept:
                self._kept.move_to_end(row.name)
                return self._kept[row.name]
        samples = self._read(row)
        with self._lock:
            if row.name not in self._kept:  # another thread may have read it meanwhile
                self._kept[row.name] = samples
                self._num_kept += len(samples)
            while self._num_kept > KEPT_SAMPLES and len(self._kept) > _KEPT_FILES:
                _, oldest = self._kept.popitem(last=False)
                self._num_kept -= len(oldest)
        return samples

    def _read(self, row: ShardRow) -> SampleIndex:
        """Read and check an index file."""
        try:
            data = self._files.read_file(index_name(row.name), at_most=row.index_bytes)
        except FileNotFoundError:
            raise self._wrong(row, "none") from None
        digest = digest_of(data)
        if digest != (row.index_bytes, row.index_sha256):
            is_long = digest.num_bytes > row.index_bytes
            size = f"{'more than ' * is_long}{min(digest.num_bytes, row.index_bytes)} bytes"
            raise self._wrong(row, f"{size} of sha256 {digest.sha256[:12]}")
        try:
            columns = msgspec.structs.asdict(msgspec.json.decode(data, type=Columns))
            samples = SampleIndex(**columns)
            shard = ShardEntry(
                name=row.name, split=row.split, num_bytes=row.bytes, sha256=row.sha256,
                samples=samples,
            )  # fmt: skip
            check_index(shard, samples, num_samples=row.samples, suffixes=self._suffixes)
            check_labels(samples, num_classes=self._num_classes)
        except (OverflowError, RecursionError, TypeError, ValueError) as error:
            raise self._wrong(row, f"{type(error).__name__}: {error}") from error
        return samples

    def _wrong(self, row: ShardRow, what: str) -> VerificationError:
        return VerificationError(
            f"the index of {row.name} must be the one that the manifest names, {row.index_bytes} "
            f"bytes of sha256 {row.index_sha256[:12]}; got {what} in "
            f"{self._files.address}/{index_name(row.name)}. {self._files.fix}"
        )
