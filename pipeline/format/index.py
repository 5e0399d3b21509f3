"""One finished shard: its checksums, and where each sample lies in it.

Axes: N samples of the shard, M members of a sample.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import msgspec
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.format.ustar import TAR_BLOCK, TAR_END, is_tar_header, tar_padding

if TYPE_CHECKING:
    from pipeline.format.index_file import StoredIndex

# A name becomes a path, a URL and a line in the terminal, so it has no special characters.
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.tar")


class Extent(NamedTuple):
    """Where a member's data lies in its shard, bytes."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """Where one sample lies in its shard.

    Attributes:
        key: The sample's key.
        label: Index of the class.
        offset: Position of its first tar header, bytes.
        sizes: Size of each member's data in tar order, bytes.
        crc32: CRC of its bytes, from the first header to the end of the last padding.
    """

    key: str
    label: int
    offset: int
    sizes: tuple[int, ...]
    crc32: int

    @property
    def length(self) -> int:
        """Bytes that the sample takes in the tar, headers and padding included."""
        return sum(TAR_BLOCK + size + tar_padding(size) for size in self.sizes)

    def extents(self) -> Iterator[Extent]:
        """Yield where each member's data lies, in tar order."""
        position = self.offset
        for size in self.sizes:
            yield Extent(position + TAR_BLOCK, size)
            position += TAR_BLOCK + size + tar_padding(size)

    def members_in(self, data: memoryview, suffixes: Sequence[str]) -> dict[str, memoryview] | None:
        """Cut the sample's stretch of the tar into its members, if it is the one that was written.

        The tar headers are compared as well as the CRC-32, since other readers rely on them.

        Returns:
            Views of the data by suffix, or None if any byte differs.
        """
        if len(data) != self.length or isal_zlib.crc32(data) != self.crc32:
            return None
        members = {}
        for suffix, extent in zip(suffixes, self.extents(), strict=True):
            start = extent.offset - self.offset
            header = bytes(data[start - TAR_BLOCK : start])
            if not is_tar_header(header, f"{self.key}.{suffix}", extent.size):
                return None
            members[suffix] = data[start : start + extent.size]
        return members


class SampleIndex(Sequence[SampleEntry]):
    """A shard's samples in tar order.

    They are stored as columns: a million entries would take a gigabyte.

    Attributes:
        suffixes: Suffixes of the M members.
        labels_N: Int32.
        offsets_N: Position of each sample's first tar header, int64, bytes.
        crc32_N: Uint32.
        sizes_MN: Size of each member's data, int64, bytes; equal sizes take the memory of one
            number.
    """

    def __init__(
        self,
        *,
        keys: Sequence[str],
        labels: Sequence[int],
        offsets: Sequence[int],
        crc32: Sequence[int],
        sizes: Mapping[str, int | Sequence[int]],
    ) -> None:
        """Keep columns with an entry for each sample.

        Args:
            keys: Keys.
            labels: Indices of classes.
            offsets: Position of each sample's first tar header, bytes.
            crc32: CRC of each sample's bytes.
            sizes: By each member's suffix in tar order, a column of sizes in bytes, or one number
                if all are equal.

        Raises:
            OverflowError, TypeError, ValueError: If the columns do not agree.
        """
        # One string takes half the memory of many.
        self._keys = "".join(keys)
        self._count = count = len(keys)
        self._key_ends_N = np.fromiter(map(len, keys), np.int64, count).cumsum()
        self.labels_N = _column(labels, np.int32, count)
        self.offsets_N = _column(offsets, np.int64, count)
        self.crc32_N = _column(crc32, np.uint32, count)
        self.suffixes = tuple(sizes)
        self.sizes_MN = tuple(
            _constant(size, count) if isinstance(size, int) else _column(size, np.int64, count)
            for size in sizes.values()
        )

    @classmethod
    def of(cls, entries: Iterable[SampleEntry], suffixes: Sequence[str]) -> "SampleIndex":
        """Make an index of single entries."""
        rows = tuple(entries)
        return cls(
            keys=[row.key for row in rows],
            labels=[row.label for row in rows],
            offsets=[row.offset for row in rows],
            crc32=[row.crc32 for row in rows],
            sizes={
                suffix: [row.sizes[member] for row in rows]
                for member, suffix in enumerate(suffixes)
            },
        )

    def in_memory(self) -> "SampleIndex":
        """Give the columns; they are here."""
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """The samples' keys in order; computed at each call."""
        return tuple(self.key(row) for row in range(self._count))

    def key(self, row: int) -> str:
        """Return one sample's key."""
        start = self._key_ends_N[row - 1] if row else 0
        return self._keys[start : self._key_ends_N[row]]

    def lengths_N(self) -> NDArray[np.int64]:
        """Count the bytes that each sample takes in the tar, headers and padding included."""
        lengths = np.zeros(self._count, np.int64)
        for sizes_N in self.sizes_MN:
            lengths += TAR_BLOCK + sizes_N + tar_padding(sizes_N)
        return lengths

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SampleEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SampleEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> SampleEntry | tuple[SampleEntry, ...]:
        if isinstance(index, slice):
            return tuple(self._entry(row) for row in range(self._count)[index])
        return self._entry(range(self._count)[index])

    def __iter__(self) -> Iterator[SampleEntry]:
        return (self._entry(row) for row in range(self._count))

    def _entry(self, row: int) -> SampleEntry:
        return SampleEntry(
            key=self.key(row),
            label=int(self.labels_N[row]),
            offset=int(self.offsets_N[row]),
            sizes=tuple(int(sizes_N[row]) for sizes_N in self.sizes_MN),
            crc32=int(self.crc32_N[row]),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleIndex):
            return NotImplemented  # a StoredIndex compares itself
        return tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._keys)


def _column(values: Sequence[int], dtype: Any, count: int) -> NDArray[Any]:
    column = np.array(values, dtype)
    if column.shape != (count,):
        raise ValueError(f"a column of {column.shape} for {count} keys")
    return column


def _constant(value: int, count: int) -> NDArray[np.int64]:
    """Repeat a number in the memory of one; `np.broadcast_to` takes ten times as long."""
    return np.ndarray((count,), np.int64, np.array(value, np.int64), strides=(0,))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """One finished shard."""

    name: str
    split: str
    num_bytes: int
    sha256: str
    samples: "SampleIndex | StoredIndex"

    def place_of(self, sample: SampleEntry) -> str:
        """Name the place of a sample, for errors."""
        return f"{self.name} at offset {sample.offset} (sample {sample.key})"


class _Line(msgspec.Struct):
    """A shard's entry with its index: by columns, which keeps the manifest small."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    keys: Sequence[str]
    labels: list[int]
    offsets: list[int]
    crc32: list[int]
    sizes: dict[str, int | list[int]]


class Columns(msgspec.Struct):
    """A shard's index as its own file has it."""

    keys: Sequence[str]
    labels: list[int]
    offsets: list[int]
    crc32: list[int]
    sizes: dict[str, int | list[int]]


def encode_shard(shard: ShardEntry) -> msgspec.Raw:
    """Write a shard's entry with its index as JSON on one line."""
    columns = _Line(
        name=shard.name,
        split=shard.split,
        samples=len(shard.samples),
        bytes=shard.num_bytes,
        sha256=shard.sha256,
        **msgspec.structs.asdict(columns_of(shard.samples.in_memory())),
    )
    return msgspec.Raw(msgspec.json.encode(columns))


def columns_of(samples: SampleIndex) -> Columns:
    """Lay an index out as it is written."""
    return Columns(
        keys=samples.keys,
        labels=samples.labels_N.tolist(),
        offsets=samples.offsets_N.tolist(),
        crc32=samples.crc32_N.tolist(),
        sizes={
            suffix: _one_or_all(sizes_N.tolist())
            for suffix, sizes_N in zip(samples.suffixes, samples.sizes_MN, strict=True)
        },
    )


def _one_or_all(sizes: list[int]) -> list[int] | int:
    return sizes[0] if len(set(sizes)) == 1 else sizes


def decode_shard(data: msgspec.Raw, suffixes: tuple[str, ...]) -> ShardEntry:
    """Read a shard's entry.

    Args:
        data: JSON, not parsed yet: one shard's numbers are freed before the next are parsed.
        suffixes: The sample's members in tar order.

    Raises:
        OverflowError, ValueError: If the fields do not agree.
    """
    line = msgspec.json.decode(data, type=_Line)
    shard = ShardEntry(
        name=line.name,
        split=line.split,
        num_bytes=line.bytes,
        sha256=line.sha256,
        samples=SampleIndex(
            keys=line.keys,
            labels=line.labels,
            offsets=line.offsets,
            crc32=line.crc32,
            sizes=line.sizes,
        ),
    )
    check_name(shard.name)
    check_split(shard.split)
    check_index(shard, shard.samples.in_memory(), num_samples=line.samples, suffixes=suffixes)
    return shard


def check_split(name: str) -> None:
    """Check the name of a split.

    Raises:
        ValueError: If no build writes this name.
    """
    if not _SPLIT.fullmatch(name):
        raise ValueError(f"split name {name!r}")


def check_name(name: str) -> None:
    """Check the name of a shard.

    Raises:
        ValueError: If no build writes this name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"shard name {name!r}")


def check_index(
    shard: ShardEntry, samples: SampleIndex, *, num_samples: int, suffixes: tuple[str, ...]
) -> None:
    """Check that an index is one of a shard: its members, number, offsets and bytes.

    Raises:
        ValueError: If they do not agree.
    """
    if samples.suffixes != suffixes:
        raise ValueError(f"members {', '.join(samples.suffixes)} in {shard.name}")
    if num_samples != len(samples):
        raise ValueError(f"{num_samples} samples but {len(samples)} keys in {shard.name}")
    lengths_N = samples.lengths_N()
    ends_N = lengths_N.cumsum()
    wrong = samples.offsets_N != ends_N - lengths_N
    for sizes_N in samples.sizes_MN:
        wrong |= sizes_N < 0
    if wrong.any():
        sample = samples[int(wrong.argmax())]
        raise ValueError(f"offset {sample.offset} of {sample.key!r} in {shard.name}")
    if int(lengths_N.sum()) + len(TAR_END) != shard.num_bytes:
        raise ValueError(f"{shard.num_bytes} bytes in {shard.name}")


def check_labels(samples: SampleIndex, *, num_classes: int) -> None:
    """Check that every label is one of the classes.

    Raises:
        ValueError: If one is not.
    """
    labels_N = samples.labels_N
    if len(labels_N) and (labels_N.min() < 0 or labels_N.max() >= num_classes):
        raise ValueError(f"a label outside of {num_classes} classes")
