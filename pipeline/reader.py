"""From shards back to samples: by index from local files, or as a stream.

Nothing is unpickled, and every byte that is handed out was checked against the manifest: a cut
or flipped shard is an error that names it, never a shorter epoch.
"""

import mmap
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isal import isal_zlib

from pipeline.errors import VerificationError
from pipeline.manifest import Manifest
from pipeline.schema import Sample, decode_sample, tar_header, tar_padding
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
            codec=self.manifest.spec.pixel_codec(),
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


def stream(folder: Path, manifest: Manifest, shard: ShardRecord) -> Iterator[Sample]:
    """Read one shard front to back through the webdataset library.

    Plain tar readers end early at a damaged header and lose the rest in silence; here each
    sample must be the next one of the manifest, and all must come.

    Raises:
        VerificationError: If a sample is missing, is another one, or has other bytes.
    """
    import webdataset  # it imports torch where torch is installed, which takes seconds

    check_length(folder, shard)
    num_read = 0
    with (folder / shard.name).open("rb") as file:
        source = [{"url": shard.name, "stream": file}]
        files = webdataset.tariterators.tar_file_expander(source)
        groups = iter(webdataset.tariterators.group_by_keys(files))
        while (fields := _next_group(groups, shard, num_read)) is not None:
            record = shard.samples[num_read] if num_read < len(shard.samples) else None
            yield _check_streamed(fields, record, shard, manifest)
            num_read += 1
    if num_read < len(shard.samples):
        raise changed_bytes(_where(shard, num_read))


def _next_group(
    groups: Iterator[Mapping[str, Any]], shard: ShardRecord, num_read: int
) -> Mapping[str, Any] | None:
    try:
        return next(groups, None)
    except (tarfile.TarError, ValueError) as error:  # a header that is none; a name that is twice
        raise changed_bytes(_where(shard, num_read)) from error


def _where(shard: ShardRecord, index: int) -> str:
    if index >= len(shard.samples):
        return f"{shard.name} after its last sample"
    sample = shard.samples[index]
    return f"{shard.name} at offset {sample.offset} (sample {sample.key})"


def _check_streamed(
    fields: Mapping[str, Any], record: SampleRecord | None, shard: ShardRecord, manifest: Manifest
) -> Sample:
    key = str(fields["__key__"])
    offset = record.offset if record else shard.num_bytes
    where = f"{shard.name} at offset {offset} (sample {key})"
    suffixes = manifest.suffixes()
    if record is None or key != record.key or any(suffix not in fields for suffix in suffixes):
        raise changed_bytes(where)
    members = {suffix: bytes(fields[suffix]) for suffix in suffixes}
    crc32 = 0
    for suffix, data in members.items():
        for part in (tar_header(f"{key}.{suffix}", len(data)), data, bytes(tar_padding(len(data)))):
            crc32 = isal_zlib.crc32(part, crc32)
    if crc32 != record.crc32:
        raise changed_bytes(where)
    spec = manifest.spec
    return decode_sample(
        key,
        members,
        plan=spec.plan(),
        layout=spec.layout,
        codec=spec.pixel_codec(),
        glimpse_px=spec.glimpse_size,
        where=where,
    )
