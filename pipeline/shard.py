"""One finished shard: its checksums, and where each sample lies in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.schema import TAR_BLOCK, TAR_END, tar_padding


class Extent(NamedTuple):
    """Where a member's data lies in its shard, bytes."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """Where one sample lies in its shard.

    Attributes:
        key: The sample's key.
        label: Index of the class.
        offset: Of its first tar header, bytes.
        sizes: Of its members' data in tar order, bytes.
        crc32: Of everything from the first header to the end of the last padding.
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


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One finished shard."""

    name: str
    split: str
    num_bytes: int
    sha256: str
    samples: tuple[SampleRecord, ...]


def shard_to_json(shard: ShardRecord, suffixes: tuple[str, ...]) -> dict[str, Any]:
    """Lay a shard's record out by columns, which keeps the manifest small."""
    return {
        "name": shard.name,
        "split": shard.split,
        "samples": len(shard.samples),
        "bytes": shard.num_bytes,
        "sha256": shard.sha256,
        "keys": [sample.key for sample in shard.samples],
        "labels": [sample.label for sample in shard.samples],
        "offsets": [sample.offset for sample in shard.samples],
        "crc32": [sample.crc32 for sample in shard.samples],
        "sizes": {
            suffix: [sample.sizes[column] for sample in shard.samples]
            for column, suffix in enumerate(suffixes)
        },
    }


def shard_from_json(fields: Mapping[str, Any], suffixes: tuple[str, ...]) -> ShardRecord:
    """Read what `shard_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: If the fields do not agree with one another.
    """
    columns = [fields["sizes"][suffix] for suffix in suffixes]
    rows = zip(
        fields["keys"], fields["labels"], fields["offsets"], fields["crc32"],
        zip(*columns, strict=True), strict=True,
    )  # fmt: skip
    samples = tuple(
        SampleRecord(
            key=str(key), label=int(label), offset=int(offset), crc32=int(crc32),
            sizes=tuple(int(size) for size in sizes),
        )
        for key, label, offset, crc32, sizes in rows
    )  # fmt: skip
    shard = ShardRecord(
        name=str(fields["name"]),
        split=str(fields["split"]),
        num_bytes=int(fields["bytes"]),
        sha256=str(fields["sha256"]),
        samples=samples,
    )
    _check_shard(shard, num_samples=int(fields["samples"]))
    return shard


def _check_shard(shard: ShardRecord, *, num_samples: int) -> None:
    if Path(shard.name).name != shard.name or not shard.name.endswith(".tar"):
        raise ValueError(f"shard name {shard.name!r}")
    if num_samples != len(shard.samples):
        raise ValueError(f"{num_samples} samples but {len(shard.samples)} keys in {shard.name}")
    position = 0
    for sample in shard.samples:
        if sample.offset != position or min(sample.sizes) < 0:
            raise ValueError(f"offset {sample.offset} of {sample.key!r} in {shard.name}")
        position += sample.length
    if position + len(TAR_END) != shard.num_bytes:
        raise ValueError(f"{shard.num_bytes} bytes in {shard.name}")
