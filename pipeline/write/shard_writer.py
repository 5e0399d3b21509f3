"""Write one shard: a tar with fixed metadata, hashed and written while the next image is decoded.

Hashing, writing and syncing release the interpreter's lock, so a thread of their own does them.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isal import isal_zlib

from pipeline.common.atomic_io import whole_write
from pipeline.format.index import SampleEntry, SampleIndex, ShardEntry
from pipeline.format.npy import Member
from pipeline.format.sample import PlannedShard
from pipeline.format.ustar import TAR_END, tar_header, tar_padding

# Smaller parts are joined: copying them costs less than a call for each.
SMALL = 65536
# Bytes of samples that may wait to be written. Decoding goes on while a stretch is synced (about 15
# canvases long on a disk of 1 GB/s); more would take memory, and miss the caches.
AHEAD_BYTES = 8 << 20
# Bytes after which the file is synced, so that the last sync has little left to wait for.
SYNC_BYTES = 16 << 20


class EncodedSample(NamedTuple):
    """One sample's members, by suffix in tar order."""

    key: str
    label: int
    members: Mapping[str, Member]


def write_shard(
    folder: Path,
    spec: PlannedShard,
    samples: Iterable[EncodedSample],
    *,
    suffixes: Sequence[str],
    num_bytes: int | None = None,
) -> ShardEntry:
    """Write one shard under its final name.

    The file appears complete or not at all, also after a power cut. Its folder is synced once, when
    the build is published.

    Args:
        folder: Folder of the shard.
        spec: Gives its name.
        samples: The samples in order, without the rejected ones.
        suffixes: Suffixes of every sample's members, in tar order.
        num_bytes: Approximate size, for errors.

    Returns:
        Its entry for the manifest.
    """
    with whole_write(folder / spec.name, num_bytes=num_bytes) as file:
        return _write_tar(file, spec, samples, suffixes)


def _write_tar(
    file: BinaryIO, spec: PlannedShard, samples: Iterable[EncodedSample], suffixes: Sequence[str]
) -> ShardEntry:
    """Take samples as they are decoded, at most `AHEAD_BYTES` before they are written."""
    tar = _Tar(file)
    waiting: deque[tuple[Future[None], int]] = deque()
    num_waiting_bytes = 0
    with ThreadPoolExecutor(max_workers=1) as thread:
        for sample in samples:
            num_bytes = sum(map(_size, sample.members.values()))
            waiting.append((thread.submit(tar.append, sample), num_bytes))
            num_waiting_bytes += num_bytes
            while num_waiting_bytes > AHEAD_BYTES:
                written, num_bytes = waiting.popleft()
                written.result()  # raises what went wrong
                num_waiting_bytes -= num_bytes
        for written, _ in waiting:
            written.result()
    tar.end()
    return ShardEntry(
        name=spec.name,
        split=spec.split,
        num_bytes=tar.num_bytes,
        sha256=tar.digest.hexdigest(),
        samples=SampleIndex.of(tar.entries, suffixes),
    )


class _Tar:
    """A tar that grows sample by sample; one thread appends.

    Attributes:
        entries: Where each sample lies.
        digest: SHA-256 of what was written.
        num_bytes: Its length.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.entries: list[SampleEntry] = []
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self._file = file
        self._num_synced_bytes = 0

    def append(self, sample: EncodedSample) -> None:
        """Hash and write a sample."""
        crc32 = 0
        for part in _tar_parts(sample):
            self._file.write(part)
            self.digest.update(part)
            crc32 = isal_zlib.crc32(part, crc32)
        entry = SampleEntry(
            key=sample.key,
            label=sample.label,
            offset=self.num_bytes,
            sizes=tuple(map(_size, sample.members.values())),
            crc32=crc32,
        )
        self.entries.append(entry)
        self.num_bytes += entry.length
        if self.num_bytes - self._num_synced_bytes >= SYNC_BYTES:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._num_synced_bytes = self.num_bytes

    def end(self) -> None:
        """Write the end of the tar."""
        self._file.write(TAR_END)
        self.digest.update(TAR_END)
        self.num_bytes += len(TAR_END)


def _tar_parts(sample: EncodedSample) -> Iterator[bytes | memoryview]:
    """Give the bytes of a sample in the tar; small parts are joined."""
    small = b""
    for suffix, member in sample.members.items():
        size = _size(member)
        small += tar_header(f"{sample.key}.{suffix}", size)
        for part in member:
            if len(part) < SMALL:
                small += part
                continue
            yield small
            yield part
            small = b""
        small += bytes(tar_padding(size))
    yield small


def _size(member: Member) -> int:
    return sum(len(part) for part in member)


def sha256_of(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
