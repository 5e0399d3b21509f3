"""Any sample of local shards by its index: memory-mapped, and checked against the manifest.

Nothing is unpickled. A cut or flipped shard is an error that names it, never a shorter epoch.

Axes: N samples of the split, S shards, M members of a sample, B samples that are asked for.
"""

from collections.abc import Iterable, Sequence
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
from pipeline.read.memory_map import MappedShards


class Located(NamedTuple):
    """Where the members of some samples lie, in the order of the samples.

    `shards_B` are positions among the reader's shards. `offsets_MB` of the members' data in their
    shards and `sizes_MB` are bytes.
    """

    shards_B: NDArray[np.int64]
    offsets_MB: NDArray[np.int64]
    sizes_MB: NDArray[np.int64]


class ShardReader:
    """Read any sample of some local shards by its index.

    Shards are memory-mapped on first use. Safe to share among threads, and to send to other
    processes, which map them anew.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: Iterable[ShardEntry]) -> None:
        """Check that every shard is there with its full length.

        Args:
            folder: Where the shards lie.
            manifest: Of that folder.
            shards: Those to read, usually `manifest.of_split(...)`; the index runs through
                their samples in order.

        Raises:
            ConfigError: If they and what this process has open are more files than it may have.
            VerificationError: If a shard is missing or has another length.
        """
        self.manifest = manifest
        self._shards = tuple(shards)
        self.mapped = MappedShards(folder, self._shards)
        samples = [shard.samples for shard in self._shards]
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
        """Make what belongs to this process alone."""
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
        return tuple(key for shard in self._shards for key in shard.samples.keys)

    @property
    def labels(self) -> tuple[int, ...]:
        """The split's labels in the order of the index."""
        return tuple(self.labels_N.tolist())

    def read(self, index: int, *, candidates: tuple[int, ...] | None = None) -> Sample:
        """Read one sample; its crops are views of the mapped shard where the layout allows.

        Args:
            index: `0 <= index < len(self)`.
            candidates: Indices on axis K to read; all by default.

        Raises:
            IndexError: If there is no such sample.
            VerificationError: If the sample's bytes are not those that were written.
        """
        number, record = self._record(index)
        shard = self._shards[number]
        self._look_at(number)
        members = self._check(number, record)
        where = shard.place_of(record)
        return decode_sample(
            self.manifest.spec, record.key, members, where=where, candidates=candidates
        )

    def locate(self, indices_B: Sequence[int] | NDArray[np.int64]) -> Located:
        """Find the members of some samples, checking each sample when it is first asked for.

        The check covers every byte of the sample, headers and padding included; a sample that
        passed it is checked again by this reader only where its shard's file has changed since.

        Raises:
            IndexError: If there is no such sample; a negative index names none.
            VerificationError: If a sample's bytes are not those that were written.
        """
        rows_B = np.asarray(indices_B, np.int64)
        if len(rows_B):
            self._check_indices(int(rows_B.min()), int(rows_B.max()))
        shards_B = np.searchsorted(self._ends_S, rows_B, side="right")
        for number in set(shards_B.tolist()):
            self._look_at(number)
        for index in rows_B[~self._is_checked_N[rows_B]].tolist():
            number, record = self._record(index)
            self._check_members(number, record)
            self._is_checked_N[index] = True
        position_B = self._offsets_N[rows_B]
        offsets, sizes = [], []
        for sizes_N in self._sizes_MN:
            sizes.append(sizes_N[rows_B])
            offsets.append(position_B + TAR_BLOCK)
            position_B = offsets[-1] + sizes[-1] + tar_padding(sizes[-1])
        return Located(shards_B, np.stack(offsets), np.stack(sizes))

    def place_of(self, index: int) -> str:
        """Name a sample's place for an error."""
        number, record = self._record(index)
        return self._shards[number].place_of(record)

    def _look_at(self, number: int) -> None:
        """Forget what was checked of a shard that was written to since the last look."""
        written_ns = self.mapped.written_ns(number)
        if self._written_ns.get(number, written_ns) != written_ns:
            end = int(self._ends_S[number])
            self._is_checked_N[end - len(self._shards[number].samples) : end] = False
        # Stored last: another thread that sees the new time must find nothing checked.
        self._written_ns[number] = written_ns

    def _check_indices(self, lowest: int, highest: int) -> None:
        """Refuse what is outside the split, before any address is computed from it.

        Raises:
            IndexError: If there is no such sample.
        """
        if lowest < 0 or highest >= len(self):
            index = lowest if lowest < 0 else highest
            raise IndexError(
                f"a sample's index must be at least 0 and below {len(self)}; got {index}."
            )

    def _record(self, index: int) -> tuple[int, SampleEntry]:
        """Find a sample's shard and record.

        Raises:
            IndexError: If there is no such sample.
        """
        self._check_indices(index, index)
        number = int(np.searchsorted(self._ends_S, index, side="right"))
        samples = self._shards[number].samples
        return number, samples[index - int(self._ends_S[number]) + len(samples)]

    def _check(self, number: int, record: SampleEntry) -> dict[str, memoryview]:
        """Give a sample's members if its bytes are those that were written."""
        stretch = self.mapped.bytes_of(number)[record.offset :][: record.length]
        members = record.members_in(stretch.data, self._suffixes)
        if members is None:
            raise VerificationError(
                "a sample's bytes must be those that were written; got others in "
                f"{self._shards[number].place_of(record)}. {self.mapped.fix_of(number)}"
            )
        return members

    def _check_members(self, number: int, record: SampleEntry) -> None:
        """Check one sample so that its arrays' headers need not be read again."""
        at = self._shards[number].place_of(record)
        for suffix, data in self._check(number, record).items():
            expected, size = self._arrays.get(suffix, (b"", len(data)))
            if data[: len(expected)] != expected or len(data) != size:
                raise VerificationError(
                    f"{suffix} must be an array of the manifest's sizes; got another in {at}. "
                    "Rebuild the shard."
                )
            if suffix == LABEL and bytes(data) != b"%d" % record.label:
                raise VerificationError(
                    f"a label must be as in the manifest, {record.label}; got another in {at}. "
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
