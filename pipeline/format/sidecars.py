"""Small files next to the shards that other readers expect."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.common.atomic_io import write_file
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest

TIMM_INFO_NAME = "_info.json"


def write_sidecars(folder: Path, manifest: Manifest) -> None:
    """Write every side file."""
    for sidecar in sidecars(manifest):
        write_file(folder / sidecar.name, sidecar.text().encode())


class Sidecar(NamedTuple):
    """A side file; making its text may read a shard's index file."""

    name: str
    text: Callable[[], str]


def sidecars(manifest: Manifest) -> Iterator[Sidecar]:
    """Yield timm's `_info.json` and each shard's `.idx`.

    They follow from the manifest, so `srp-data verify` can check them.
    """
    yield Sidecar(TIMM_INFO_NAME, partial(timm_info, manifest))
    suffixes = manifest.suffixes()
    for shard in manifest.shards:
        name = shard.name.removesuffix(".tar") + ".idx"
        yield Sidecar(name, partial(dali_index, shard, suffixes))


def timm_info(manifest: Manifest) -> str:
    """List splits, shards and their lengths for timm's WebDataset reader."""
    splits = {
        split: {
            "name": split,
            "num_samples": manifest.num_samples(split),
            "filenames": [shard.name for shard in manifest.of_split(split)],
            "shard_lengths": [len(shard.samples) for shard in manifest.of_split(split)],
        }
        for split in manifest.splits
    }
    return json.dumps({"splits": splits}, indent=1) + "\n"


def dali_index(shard: ShardEntry, suffixes: tuple[str, ...]) -> str:
    """Index one shard for DALI's WebDataset reader.

    Source: NVIDIA DALI, `wds2idx`, format v1.2: the version and the number of samples, then a
    line per sample with suffix, data offset, size and name of each member.
    """
    lines = [f"v1.2 {len(shard.samples)}"]
    for sample in shard.samples:
        members = zip(suffixes, sample.extents(), strict=True)
        lines.append(
            " ".join(
                f"{suffix} {extent.offset} {extent.size} {sample.key}.{suffix}"
                for suffix, extent in members
            )
        )
    return "\n".join(lines) + "\n"
