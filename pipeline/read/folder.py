"""A folder of shards on this machine, opened: its manifest, and readers of its splits."""

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.common.errors import ConfigError
from pipeline.format import manifest as manifests
from pipeline.format.crops import CropLayout
from pipeline.format.index import SampleIndex
from pipeline.format.manifest import Manifest
from pipeline.read.reader import ShardReader


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

    def limited(self, num_samples: int) -> "ShardFolder":
        """Keep the first samples of each split, which a build draws at random.

        Args:
            num_samples: Samples of a split, at most.
        """
        kept = []
        left = dict.fromkeys(self.splits, num_samples)
        for shard in self.manifest.shards:
            samples = shard.samples
            if left[shard.split] < len(samples):
                samples = SampleIndex.of(samples[: left[shard.split]], samples.suffixes)
            left[shard.split] -= len(samples)
            if len(samples):
                kept.append(replace(shard, samples=samples))
        return replace(self, manifest=replace(self.manifest, shards=tuple(kept)))
