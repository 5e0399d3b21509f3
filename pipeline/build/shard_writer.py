"""Write one shard: a tar with fixed metadata, hashed while it is written."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isal import isal_zlib

from pipeline.common.atomic_io import atomic_write
from pipeline.format.index import SampleEntry, SampleIndex, ShardEntry
from pipeline.format.npy import Member
from pipeline.format.sample import PlannedShard
from pipeline.format.ustar import TAR_END, tar_header, tar_padding

# Smaller parts are joined: copying them costs less than a call for each.
SMALL = 65536


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

    The file appears complete or not at all, also after a power cut.

    Args:
        folder: Folder of the shard.
        spec: Gives its name.
        samples: The samples in order, without the rejected ones.
        suffixes: Suffixes of every sample's members, in tar order.
        num_bytes: Approximate size, for errors.

    Returns:
        Its entry for the manifest.
    """
    with atomic_write(folder / spec.name, num_bytes=num_bytes) as file:
        return _write_tar(file, spec, samples, suffixes)


def _write_tar(
    file: BinaryIO, spec: PlannedShard, samples: Iterable[EncodedSample], suffixes: Sequence[str]
) -> ShardEntry:
    digest = hashlib.sha256()
    records = []
    position = 0
    for sample in samples:
        crc32 = 0
        for part in _tar_parts(sample):
            file.write(part)
            digest.update(part)
            crc32 = isal_zlib.crc32(part, crc32)
        record = SampleEntry(
            key=sample.key,
            label=sample.label,
            offset=position,
            sizes=tuple(_size(member) for member in sample.members.values()),
            crc32=crc32,
        )
        records.append(record)
        position += record.length
    file.write(TAR_END)
    digest.update(TAR_END)
    return ShardEntry(
        name=spec.name,
        split=spec.split,
        num_bytes=position + len(TAR_END),
        sha256=digest.hexdigest(),
        samples=SampleIndex.of(records, suffixes),
    )


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
