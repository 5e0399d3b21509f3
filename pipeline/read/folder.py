"""A folder of shards on this machine, opened: its manifest, and readers of its splits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import ConfigError
from pipeline.format import manifest as manifests
from pipeline.format.crops import CropLayout
from pipeline.format.index import SampleIndex, ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.read.reader import ShardReader

DEV_PARTS = 10  # dev is one of so many parts of the training split


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """An opened folder of shards."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "ShardFolder":
        """Open a folder that has a manifest, or whose only subfolder with one is meant.

        Raises:
            ConfigError: If there is no manifest, more than one, or one of another version.
            VerificationError: If the manifest is damaged.
        """
        folder = manifests.find(Path(path))
        return cls(path=folder, manifest=manifests.load(folder))

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

        Raises:
            ConfigError: If the split holds no sample.
            VerificationError: If a shard is missing or has another length.
        """
        reader = ShardReader(self.path, self.manifest, self.manifest.of_split(split))
        if not len(reader):
            raise ConfigError(
                f"a split must hold samples; got 0 in {split!r} of {self.path}. "
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
            for place, key in enumerate(shard.samples.keys):
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
                f"{counts[1]} in dev, in {self.path}. Leave --dev out, or build more images."
            )
        return replace(self, manifest=manifest)

    def fold_of(self, split: str, num_folds: int) -> NDArray[np.int64]:
        """Assign each sample of a split to one of some folds, by its key alone.

        So a photograph is in the same fold in all shards in which it has the same key.

        Returns:
            Int64 `(N,)`, in the order of the reader's index.
        """
        keys = (key for shard in self.manifest.of_split(split) for key in shard.samples.keys)
        return np.array([part_of(key, num_folds, salt="fold") for key in keys], np.int64)

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
    samples = shard.samples
    if len(places) == len(samples):
        return shard
    kept = SampleIndex.of([samples[place] for place in places], samples.suffixes)
    return replace(shard, samples=kept)
