"""Write one shard aside, and rename it into place when every byte is on the disk."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.durable import whole_file
from pipeline.schema import TAR_END, ShardSpec, tar_header, tar_padding
from pipeline.shard import SampleRecord, ShardRecord


class EncodedSample(NamedTuple):
    """One sample's members, by suffix in tar order."""

    key: str
    label: int
    members: Mapping[str, bytes]


def write_shard(folder: Path, spec: ShardSpec, samples: Iterable[EncodedSample]) -> ShardRecord:
    """Write one shard under its final name.

    The file appears whole or not at all, also after a power cut.

    Args:
        folder: Where it goes.
        spec: Names it.
        samples: In order; may leave out keys of the spec that were rejected.

    Returns:
        Its record for the manifest.
    """
    with whole_file(folder / spec.name) as file:
        return _write_tar(file, spec, samples)


def _write_tar(file: BinaryIO, spec: ShardSpec, samples: Iterable[EncodedSample]) -> ShardRecord:
    digest = hashlib.sha256()
    records = []
    position = 0
    for sample in samples:
        data = _tar_sample(sample)
        file.write(data)
        digest.update(data)
        record = SampleRecord(
            key=sample.key,
            label=sample.label,
            offset=position,
            sizes=tuple(len(member) for member in sample.members.values()),
            crc32=zlib.crc32(data),
        )
        records.append(record)
        position += len(data)
    file.write(TAR_END)
    digest.update(TAR_END)
    return ShardRecord(
        name=spec.name,
        split=spec.split,
        num_bytes=position + len(TAR_END),
        sha256=digest.hexdigest(),
        samples=tuple(records),
    )


def _tar_sample(sample: EncodedSample) -> bytes:
    """Lay a sample's members out as they lie in the tar, so that it is written at once."""
    parts = (
        part
        for suffix, data in sample.members.items()
        for part in (
            tar_header(f"{sample.key}.{suffix}", len(data)),
            data,
            bytes(tar_padding(len(data))),
        )
    )
    return b"".join(parts)


def sha256_of(path: Path) -> str:
    """Hash a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
