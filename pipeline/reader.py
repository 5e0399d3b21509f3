"""From shards back to samples, by index from local files.

Nothing is unpickled, and every byte that is handed out was checked against the manifest: a cut
or flipped shard is an error that names it, never a shorter epoch.
"""

import mmap
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

from pipeline.errors import VerificationError
from pipeline.manifest import Manifest
from pipeline.schema import Sample, decode_sample
from pipeline.shard import SampleRecord, ShardRecord


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one sample of a split lies."""

    shard: ShardRecord
    sample: SampleRecord


class IndexedReader:
    """Read any sample of some local shards by its index.

    Shards are memory-mapped on first use. Safe to share among threads.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: Iterable[ShardRecord]) -> None:
        """Check that every shard is there with its full length.

        Args:
            folder: Where the shards lie.
            manifest: Of that folder.
            shards: Those to read, usually `manifest.of_split(...)`; the index runs through
                their samples in order.

        Raises:
            VerificationError: If a shard is missing or has another length.
        """
        self.manifest = manifest
        self._folder = folder
        self._places = []
        for shard in shards:
            check_length(folder, shard)
            self._places += [_Place(shard=shard, sample=sample) for sample in shard.samples]
        self._plan = manifest.spec.plan()
        self._suffixes = manifest.suffixes()
        self._maps: dict[str, memoryview] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def keys(self) -> tuple[str, ...]:
        """The split's keys in the order of the index."""
        return tuple(place.sample.key for place in self._places)

    @property
    def labels(self) -> tuple[int, ...]:
        """The split's labels in the order of the index."""
        return tuple(place.sample.label for place in self._places)

    def read(self, index: int, *, candidates: tuple[int, ...] | None = None) -> Sample:
        """Read one sample; its crops are views of the mapped shard where the layout allows.

        Args:
            index: `0 <= index < len(self)`.
            candidates: Indices on axis K to read; all by default.

        Raises:
            VerificationError: If the sample's bytes are not those that were written.
        """
        place = self._places[index]
        data = self._map(place.shard)[place.sample.offset :][: place.sample.length]
        where = f"{place.shard.name} at offset {place.sample.offset} (sample {place.sample.key})"
        if isal_zlib.crc32(data) != place.sample.crc32:
            raise changed_bytes(where)
        start = place.sample.offset
        members = {
            suffix: data[extent.offset - start :][: extent.size]
            for suffix, extent in zip(self._suffixes, place.sample.extents(), strict=True)
        }
        return decode_sample(
            place.sample.key,
            members,
            plan=self._plan,
            layout=self.manifest.spec.layout,
            glimpse_px=self.manifest.spec.glimpse_size,
            where=where,
            candidates=candidates,
        )

    def _map(self, shard: ShardRecord) -> memoryview:
        with self._lock:
            if shard.name not in self._maps:
                with (self._folder / shard.name).open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._maps[shard.name] = memoryview(mapped)
            return self._maps[shard.name]


def check_length(folder: Path, shard: ShardRecord) -> None:
    """Check that a shard is there with its full length.

    Raises:
        VerificationError: If it is not.
    """
    path = folder / shard.name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise VerificationError(
            f"every shard of the manifest must be there; got none at {path}. "
            "Run the same srp-data build-shards command again to rebuild it."
        ) from None
    if size != shard.num_bytes:
        raise VerificationError(
            f"a shard must have the length that was written; got {size} bytes, not "
            f"{shard.num_bytes}, in {path} (broken from offset {min(size, shard.num_bytes)}). "
            "Run the same srp-data build-shards command again to rebuild it."
        )


def changed_bytes(where: str) -> VerificationError:
    """Say that bytes are not those that were written."""
    return VerificationError(
        f"a sample's bytes must be those that were written; got others in {where}. "
        "Run the same srp-data build-shards command again to rebuild the shard."
    )
