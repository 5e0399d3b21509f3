"""Read any sample of shards by its index, memory-mapped and checked against the manifest.

Nothing is unpickled. A cut or flipped shard is an error that names it, never a shorter epoch.

Axes: N samples of the split, S shards, M members of a sample, B samples to read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import VerificationError
from pipeline.format.index import SampleEntry, ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.format.npy import NPY_START, npy_header
from pipeline.format.sample import LABEL, Sample, decode_sample
from pipeline.format.ustar import TAR_BLOCK, tar_padding
from pipeline.read.memory_map import MappedShards, ShardBytes
from pipeline.read.sampler import Indices, Windows, window_bytes


class Located(NamedTuple):
    """Where the members of B samples lie.

    `shards_B` are positions among the reader's shards; `offsets_MB` and `sizes_MB` of the members'
    data are bytes.
    """

    shards_B: NDArray[np.int64]
    offsets_MB: NDArray[np.int64]
    sizes_MB: NDArray[np.int64]


class ShardReader:
    """Reads any sample of some shards by its index.

    Shards are memory-mapped on first use. Safe to share among threads, and to send to other
    processes, which map the shards again.
    """

    def __init__(
        self, place: Path | ShardBytes, manifest: Manifest, shards: Iterable[ShardEntry]
    ) -> None:
        """Check that every shard of a folder exists with its full length.

        Args:
            place: Folder of the shards, or their bytes.
            manifest: Its manifest.
            shards: Shards to read, usually `manifest.of_split(...)`; the index counts their
                samples in order.

        Raises:
            ConfigError: If the process may not open as many files.
            VerificationError: If a shard is missing or has another length, or its index file is
                not the one that the manifest names.
        """
        self.manifest = manifest
        # An order at random needs every index at once: about 90 bytes a sample.
        self._shards = tuple(replace(each, samples=each.samples.in_memory()) for each in shards)
        self.mapped: ShardBytes = (
            MappedShards(place, self._shards) if isinstance(place, Path) else place
        )
        samples = [shard.samples.in_memory() for shard in self._shards]
        self._ends_S = np.cumsum([len(each) for each in samples], dtype=np.int64)
        self.labels_N = _joined([each.labels_N for each in samples])
        self._offsets_N = _joined([each.offsets_N for each in samples])
        self._sizes_MN = tuple(
            _joined([each.sizes_MN[member] for each in samples])
            for member in range(len(manifest.suffixes()))
        )
        self._suffixes = manifest.suffixes()
        self._arrays = {
            suffix: (npy_header(shape), NPY_START + prod(shape))
            for suffix, shape in manifest.npy_shapes().items()
        }
        self._set_up()

    def _set_up(self) -> None:
        """Initialise the state of this process."""
        self._is_checked_N = np.zeros(len(self), bool)
        self._written_ns: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        own = ("_is_checked_N", "_written_ns")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def keys(self) -> tuple[str, ...]:
        """The split's keys in the order of the index."""
        return tuple(key for shard in self._shards for key in shard.samples.in_memory().keys)

    @property
    def labels(self) -> tuple[int, ...]:
        """The split's labels in the order of the index."""
        return tuple(self.labels_N.tolist())

    def read(self, index: int, *, candidates: tuple[int, ...] | None = None) -> Sample:
        """Read one sample; raw crops are views of the mapped shard.

        Args:
            index: `0 <= index < len(self)`.
            candidates: Indices on axis K to read; all by default.

        Raises:
            IndexError: If the index is out of range.
            VerificationError: If the sample's bytes are not those that were written.
        """
        number, entry = self._entry(index)
        shard = self._shards[number]
        self._notice_change(number)
        members = self._check(number, entry)
        where = shard.place_of(entry)
        return decode_sample(
            self.manifest.spec, entry.key, members, where=where, candidates=candidates
        )

    def locate(self, indices_B: Sequence[int] | NDArray[np.int64]) -> Located:
        """Locate the members of some samples, and check each sample on first use.

        The check covers every byte of the sample, including headers and padding. It is repeated
        only if the shard's file has changed since.

        Raises:
            IndexError: If an index is negative or too large.
            VerificationError: If a sample's bytes are not those that were written.
        """
        rows_B = np.asarray(indices_B, np.int64)
        if len(rows_B):
            self._check_indices(int(rows_B.min()), int(rows_B.max()))
        shards_B = self.shards_of(rows_B)
        for number in set(shards_B.tolist()):
            self._notice_change(number)
        for index in rows_B[~self._is_checked_N[rows_B]].tolist():
            number, entry = self._entry(index)
            self._check_members(number, entry)
            self._is_checked_N[index] = True
        position_B = self._offsets_N[rows_B]
        offsets, sizes = [], []
        for sizes_N in self._sizes_MN:
            sizes.append(sizes_N[rows_B])
            offsets.append(position_B + TAR_BLOCK)
            position_B = offsets[-1] + sizes[-1] + tar_padding(sizes[-1])
        return Located(shards_B, np.stack(offsets), np.stack(sizes))

    def shards_of(self, indices_B: Indices) -> NDArray[np.int64]:
        """Find the shard of each sample, as its position among the reader's shards."""
        return np.searchsorted(self._ends_S, indices_B, side="right").astype(np.int64)

    def windows(self, rows_N: Indices) -> Windows | None:
        """Say which of some samples an epoch shuffles together; None shuffles all."""
        sizes = [shard.num_bytes for shard in self._shards]
        window = window_bytes(sizes, self.mapped.limit_bytes)
        if window is None:
            return None
        return Windows(
            shards_N=self.shards_of(rows_N), bytes_S=np.array(sizes), window_bytes=window
        )

    def place_of(self, index: int) -> str:
        """Name a sample's place, for errors."""
        number, entry = self._entry(index)
        return self._shards[number].place_of(entry)

    def _notice_change(self, number: int) -> None:
        """Forget the checks of a shard whose file was written since."""
        written_ns = self.mapped.written_ns(number)
        if self._written_ns.get(number, written_ns) != written_ns:
            end = int(self._ends_S[number])
            self._is_checked_N[end - len(self._shards[number].samples) : end] = False
        # Stored last: a thread that sees the new time must see the checks forgotten.
        self._written_ns[number] = written_ns

    def _check_indices(self, lowest: int, highest: int) -> None:
        """Check indices before addresses are computed from them.

        Raises:
            IndexError: If one is out of range.
        """
        if lowest < 0 or highest >= len(self):
            index = lowest if lowest < 0 else highest
            raise IndexError(
                f"a sample's index must be at least 0 and below {len(self)}; got {index}."
            )

    def _entry(self, index: int) -> tuple[int, SampleEntry]:
        """Find a sample's shard and entry.

        Raises:
            IndexError: If there is no such sample.
        """
        self._check_indices(index, index)
        number = int(np.searchsorted(self._ends_S, index, side="right"))
        samples = self._shards[number].samples
        return number, samples[index - int(self._ends_S[number]) + len(samples)]

    def _check(self, number: int, entry: SampleEntry) -> dict[str, memoryview]:
        """Return a sample's members, checked."""
        stretch = self.mapped.bytes_of(number)[entry.offset :][: entry.length]
        members = entry.members_in(stretch.data, self._suffixes)
        if members is None:
            raise VerificationError(
                "a sample's bytes must be those that were written; got others in "
                f"{self._shards[number].place_of(entry)}. {self.mapped.fix_of(number)}"
            )
        return members

    def _check_members(self, number: int, entry: SampleEntry) -> None:
        """Check one sample, including the headers of its arrays."""
        at = self._shards[number].place_of(entry)
        for suffix, data in self._check(number, entry).items():
            expected, size = self._arrays.get(suffix, (b"", len(data)))
            if data[: len(expected)] != expected or len(data) != size:
                raise VerificationError(
                    f"{suffix} must be an array of the manifest's sizes; got another in {at}. "
                    "Rebuild the shard."
                )
            if suffix == LABEL and bytes(data) != b"%d" % entry.label:
                raise VerificationError(
                    f"a label must be as in the manifest, {entry.label}; got another in {at}. "
                    "Rebuild the shard."
                )


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put columns of shards end to end; where all are one number, so is the result."""
    if not columns:
        return np.zeros(0, np.int64)
    numbers = {int(column[0]) for column in columns if len(column)}
    if len(numbers) == 1 and all(column.strides == (0,) for column in columns):
        return np.broadcast_to(np.int64(numbers.pop()), sum(map(len, columns)))
    return np.concatenate(columns)
