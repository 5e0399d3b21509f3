"""An opened folder of shards, wherever it is: its manifest, and readers of its splits."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import ConfigError
from pipeline.format.crops import CropLayout
from pipeline.format.index import SampleIndex, ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.read.reader import ShardReader
from pipeline.read.sampler import window_bytes
from pipeline.remote.address import RemoteFolder, parse_address
from pipeline.stream.cache import ShardCache, default_folder
from pipeline.stream.fetched import FetchedShards
from pipeline.stream.store import LocalStore, RemoteStore, open_store

DEV_PARTS = 10  # dev is one of so many parts of the training split


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """An opened folder of shards, on this machine or at an address.

    Attributes:
        store: Where the shards lie.
        manifest: What is read of them.
    """

    store: LocalStore | RemoteStore
    manifest: Manifest

    @classmethod
    def open(
        cls, place: Path | str, *, cache: Path | None = None, cache_mib: int | None = None
    ) -> "ShardFolder":
        """Open a folder that has a manifest, or whose only subfolder with one is meant.

        Args:
            place: A path, or an address (see `parse_address`). A `Path` is always a path.
            cache: Folder that keeps the shards of an address, each fetched whole when it is first
                needed; None takes that of the user's other caches.
            cache_mib: Size that the cache should not exceed, MiB; None keeps all.

        Raises:
            ConfigError: If there is no manifest, more than one, or one of another version, or the
                cache cannot be used.
            DownloadError: If the manifest cannot be fetched.
            VerificationError: If the manifest is damaged.
        """
        found = place if isinstance(place, Path) else parse_address(place)
        if isinstance(found, RemoteFolder):
            cache = (cache or default_folder()).absolute()
        elif cache is not None or cache_mib is not None:
            option = f"--cache {cache}" if cache else f"--cache-mib {cache_mib}"
            raise ConfigError(
                f"a cache needs shards at an address; got {option} for the folder {found}. Drop "
                f"{option.split()[0]}: shards of a folder are read where they lie."
            )
        store = open_store(place, cache=cache, cache_mib=cache_mib)
        opened = cls(store=store, manifest=store.load_manifest())
        opened._check_cache()
        return opened

    @property
    def place(self) -> str:
        """The folder's path or address, as errors and records name it."""
        return self.store.address

    @property
    def cache(self) -> ShardCache | None:
        """What keeps the shards of an address on this machine."""
        return self.store.cache if isinstance(self.store, RemoteStore) else None

    def window_mib(self, split: str) -> float | None:
        """Give the size of the windows in which an epoch shuffles samples; None shuffles all.

        It is part of what decides a training's figures; see `pipeline.read.sampler`.
        """
        sizes = [shard.num_bytes for shard in self.manifest.of_split(split)]
        size = window_bytes(sizes, self.cache.limit_bytes if self.cache else None)
        return None if size is None else size / 2**20

    @property
    def crop_layout(self) -> CropLayout:
        """The K candidates of every sample."""
        return self.manifest.spec.crop_layout

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        return self.manifest.splits

    def reader(self, split: str) -> ShardReader:
        """Open the shards of one split.

        Those of an address are fetched when they are needed.

        Raises:
            ConfigError: If the split holds no sample.
            VerificationError: If a shard of a folder is missing or has another length.
        """
        shards, store = self.manifest.of_split(split), self.store
        place = store.folder if isinstance(store, LocalStore) else FetchedShards(store, shards)
        reader = ShardReader(place, self.manifest, shards)
        if not len(reader):
            raise ConfigError(
                f"a split must hold samples; got 0 in {split!r} of {self.place}. "
                "Build shards from a source with images in both splits."
            )
        return reader

    def with_dev(self) -> "ShardFolder":
        """Validate on a fixed tenth of the training split, and keep the rest of it for training.

        For tuning, so that the validation split stays unseen. A sample's key alone decides, so
        dev holds the same images in shards of any size.

        Raises:
            ConfigError: If one of the two would hold no sample.
        """
        parts: dict[str, list[ShardEntry]] = {"train": [], "val": []}
        for shard in self.manifest.of_split("train"):
            places: dict[str, list[int]] = {split: [] for split in parts}
            for place, key in enumerate(shard.samples.in_memory().keys):
                is_dev = part_of(key, DEV_PARTS, salt="dev") == 0
                places["val" if is_dev else "train"].append(place)
            for split, own in places.items():
                if own:
                    parts[split].append(replace(_only(shard, own), split=split))
        # Of its own, so that its runs are never compared with those of the whole training split.
        fingerprint = hashlib.sha256(f"dev {self.manifest.fingerprint}".encode()).hexdigest()
        kept = (*parts["train"], *parts["val"])
        manifest = replace(self.manifest, shards=kept, fingerprint=fingerprint)
        counts = [manifest.num_samples(split) for split in parts]
        if not all(counts):
            raise ConfigError(
                f"--dev needs training images on both sides; got {counts[0]} to train on and "
                f"{counts[1]} in dev, in {self.place}. Leave --dev out, or build more images."
            )
        return replace(self, manifest=manifest)

    def fold_of(self, split: str, num_folds: int) -> NDArray[np.int64]:
        """Assign each sample of a split to one of some folds, by its key alone.

        So a photograph is in the same fold in all shards in which it has the same key.

        Returns:
            Int64 `(N,)`, in the order of the reader's index.
        """
        shards = self.manifest.of_split(split)
        keys = (key for shard in shards for key in shard.samples.in_memory().keys)
        return np.array([part_of(key, num_folds, salt="fold") for key in keys], np.int64)

    def _check_cache(self) -> None:
        """Check that the cache holds a shard that is read and one that is fetched meanwhile."""
        largest = max((shard.num_bytes for shard in self.manifest.shards), default=0)
        if self.cache and self.cache.limit_bytes is not None:
            needed = math.ceil(2 * largest / 2**20)
            if self.cache.limit_bytes < 2 * largest:
                raise ConfigError(
                    f"a cache must have room for two shards; got --cache-mib "
                    f"{self.cache.limit_mib} for shards of up to {largest / 2**20:.1f} MiB at "
                    f"{self.place}. Raise it to {needed} or more, or leave it out."
                )

    def limited(self, num_samples: int) -> "ShardFolder":
        """Keep the first samples of each split, which a build draws at random.

        Args:
            num_samples: Samples of a split, at most.
        """
        kept = []
        left = dict.fromkeys(self.splits, num_samples)
        for shard in self.manifest.shards:
            count = min(left[shard.split], len(shard.samples))
            left[shard.split] -= count
            if count:
                kept.append(_only(shard, range(count)))
        return replace(self, manifest=replace(self.manifest, shards=tuple(kept)))


def part_of(key: str, num_parts: int, *, salt: str) -> int:
    """Assign a sample to one of some parts by the SHA-256 of its key.

    Args:
        key: Of the sample.
        num_parts: Parts.
        salt: Name of the partition, so that two of them are independent.
    """
    digest = hashlib.sha256(f"{salt}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_parts


def _only(shard: ShardEntry, places: Sequence[int]) -> ShardEntry:
    """Keep some samples of a shard."""
    if len(places) == len(shard.samples):
        return shard
    samples = shard.samples.in_memory()
    kept = SampleIndex.of([samples[place] for place in places], samples.suffixes)
    return replace(shard, samples=kept)
