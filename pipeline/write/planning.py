"""Which image goes to which shard: a pure, seeded decision."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.common.errors import SourceError
from pipeline.format.codecs import codec_of
from pipeline.format.sample import PlannedShard
from pipeline.format.spec import DataSpec
from pipeline.format.ustar import TAR_BLOCK, TAR_END
from pipeline.sources.image import SourceImage

_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]")
_META = re.compile(r"^__+")  # readers of the webdataset library skip __NAME__ as metadata
_DIGEST = re.compile(r"-[0-9a-f]{12}$")
_KEY_LIMIT = 80  # leaves room for the longest suffix in a ustar name of 100 bytes


Planned = tuple[PlannedShard, tuple[SourceImage, ...]]
"""A shard to be written, and its images."""


def assign_keys(paths: Iterable[str]) -> dict[str, str]:
    """Give each path of one split a key that is safe in a tar and unique in any file system.

    A key is the path without its split and suffix. A digest of the path is appended where that has
    an unsafe character, is too long, ends like a digest, or differs from another only in case.

    Raises:
        SourceError: If two digests are equal, which does not happen by chance.
    """
    plain = {path: path.split("/", 1)[1].rpartition(".")[0] for path in paths}
    counts: dict[str, int] = {}
    for stem in plain.values():
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    keys: dict[str, str] = {}
    owners: dict[str, str] = {}
    for path, stem in plain.items():
        safe = _META.sub("_", _UNSAFE.sub("_", stem))
        is_own = safe == stem and len(safe) <= _KEY_LIMIT and not _DIGEST.search(stem.casefold())
        if not is_own or counts[stem.casefold()] > 1:
            digest = hashlib.sha256(path.encode()).hexdigest()[:12]
            safe = f"{safe[: _KEY_LIMIT - 13]}-{digest}"
        owner = owners.setdefault(safe.casefold(), path)
        if owner != path:
            raise SourceError(
                f"every image must have its own key; got {safe} for {owner} and for {path}. "
                "Rename one of them."
            )
        keys[path] = safe
    return keys


def select(images: Sequence[SourceImage], *, seed: int, limit: int | None) -> list[SourceImage]:
    """Shuffle one split's images, and keep at most `limit` of them.

    The order depends only on the seed and the set of paths. It mixes the classes, so that a reader
    that streams the shards in order gets mixed batches.
    """
    by_path = sorted(images, key=lambda image: image.path)
    order = np.random.default_rng(seed).permutation(len(by_path))
    return [by_path[i] for i in order[:limit]]


def sample_bytes(spec: DataSpec) -> int:
    """Count the bytes that a sample takes in a shard, at most.

    The bytes of a coded image are known only once it is encoded; a share is taken that few exceed.
    """
    layout, crop_bytes = spec.crop_layout, spec.crop_size**2
    if spec.layout == "tensors":
        pixels = len(layout) * 4 * crop_bytes
    else:
        coded = 3 * spec.canvas_size**2 + 3 * crop_bytes * len(layout.resized)
        pixels = int(coded * codec_of(spec).typical_share) + len(layout) * spec.glimpse_size**2
    overhead = 16 * TAR_BLOCK  # headers, paddings, .npy headers and the small members
    return pixels + overhead


def samples_per_shard(spec: DataSpec) -> int:
    """Count the samples that fit into a shard; at least one."""
    return max(1, ((spec.shard_mib << 20) - len(TAR_END)) // sample_bytes(spec))


def plan_shards(images: Mapping[str, Sequence[SourceImage]], *, per_shard: int) -> list[Planned]:
    """Cut each split's ordered images into shards.

    Args:
        images: By split, in the order of `select`.
        per_shard: Images a shard.

    Returns:
        Every shard with its images; every image is in exactly one.
    """
    shards = []
    for split, members in images.items():
        keys = assign_keys(image.path for image in members)
        for index, start in enumerate(range(0, len(members), per_shard)):
            chunk = tuple(members[start : start + per_shard])
            spec = PlannedShard(
                split=split, index=index, keys=tuple(keys[image.path] for image in chunk)
            )
            shards.append((spec, chunk))
    return shards
