"""What exists in a folder of shards: `manifest.json`.

A shard that the manifest does not name does not exist. It is written last, so a folder that has
one is complete.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from pipeline.common.checksum import NO_DIGEST, embed_sha256, verify_sha256
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.codecs import codec_of
from pipeline.format.index import ShardEntry, check_split, shard_from_json, shard_to_json
from pipeline.format.sample import member_suffixes, npy_shapes
from pipeline.format.spec import CODECS, LAYOUTS, DataSpec

FORMAT = "srp-shards/3"
FILE_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
LARGEST_PX = 1 << 16  # of a side: what JPEG can hold
DIGEST = "manifest_sha256"
_HEAD_BYTES = 256  # within which the digest lies


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One source image that is in no shard, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a folder of shards holds.

    Attributes:
        spec: What the pixels are.
        fingerprint: Of the spec and of the source's listing; a build resumes only its own.
        classes: Folder names of the classes; a label is an index into them.
        class_names: The same for people.
        num_sources: Source images per split, rejected ones included.
        rejects: Images that are in no shard.
        shards: In order, by split.
    """

    spec: DataSpec
    fingerprint: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    num_sources: Mapping[str, int]
    rejects: tuple[Reject, ...]
    shards: tuple[ShardEntry, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        return tuple(self.num_sources)

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        """List a split's shards in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_samples(self, split: str) -> int:
        """Count a split's samples."""
        return sum(len(shard.samples) for shard in self.of_split(split))

    def suffixes(self) -> tuple[str, ...]:
        """List every sample's members in tar order."""
        return member_suffixes(self.spec)

    def npy_shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shapes of the members that are arrays, by suffix."""
        return npy_shapes(self.spec)


def fingerprint(spec: DataSpec, listing: Iterable[tuple[str, int]]) -> str:
    """Hash what decides the shards' bytes: format, spec, and each source's path and size."""
    told = {"format": FORMAT, **asdict(spec)}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for path, size in listing:
        digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()


def to_json(manifest: Manifest) -> str:
    """Write a manifest; equal manifests give equal text.

    It holds its own SHA-256; see `pipeline.common.checksum`.
    """
    plan = manifest.spec.crop_layout
    head = {
        "format": FORMAT,
        DIGEST: NO_DIGEST,
        "fingerprint": manifest.fingerprint,
        "lossy": codec_of(manifest.spec).is_lossy,
        "spec": asdict(manifest.spec),
        "candidates": [
            {"name": name, "box_px": list(box), "box": list(fractions)}
            for name, box, fractions in zip(plan.names, plan.boxes, plan.normalised(), strict=True)
        ],
        "classes": list(manifest.classes),
        "class_names": list(manifest.class_names),
        "splits": {
            split: {"sources": count, "samples": manifest.num_samples(split)}
            for split, count in manifest.num_sources.items()
        },
        "rejects": [asdict(reject) for reject in manifest.rejects],
    }
    # One line per shard: people read the head, and a diff names the shard.
    shards = ",\n".join(
        json.dumps(shard_to_json(shard), separators=(",", ":")) for shard in manifest.shards
    )
    text = f'{json.dumps(head, indent=1)[:-2]},\n "shards": [\n{shards}\n]}}\n'
    return embed_sha256(text.encode(), DIGEST).decode()


class _Format(msgspec.Struct):
    format: str


class _Counts(msgspec.Struct):
    sources: int
    samples: int


class _Head(msgspec.Struct):
    """A manifest whose shards have not been read yet."""

    fingerprint: str
    spec: DataSpec
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: dict[str, _Counts]
    rejects: tuple[Reject, ...]
    shards: list[msgspec.Raw]


def _check_spec(spec: DataSpec) -> None:
    """Refuse what no build writes, before memory is taken for it.

    Raises:
        ValueError: If a field is out of its range.
    """
    for name, value, known in (("layout", spec.layout, LAYOUTS), ("codec", spec.codec, CODECS)):
        if value not in known:
            raise ValueError(f"{name} {value!r}")
    if not 0 < spec.glimpse_size <= spec.crop_size <= spec.canvas_size <= LARGEST_PX:
        sizes = f"{spec.glimpse_size}, {spec.crop_size} and {spec.canvas_size}"
        raise ValueError(f"glimpses, crops and canvases of {sizes} px")


def _check_names(manifest: Manifest) -> None:
    """Refuse splits and shards that could not be told apart, or that no split holds.

    Raises:
        ValueError: If there is one.
    """
    for split in manifest.splits:
        check_split(split)
    seen = set()
    for shard in manifest.shards:
        if shard.split not in manifest.num_sources:
            raise ValueError(f"{shard.name} of {shard.split}, which is none of the splits")
        if shard.name in seen:
            raise ValueError(f"{shard.name} twice")
        seen.add(shard.name)


def from_json(text: str | bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ConfigError: If another version of the format wrote it.
        OverflowError, RecursionError, TypeError, ValueError: If it is not one.
    """
    data = text.encode() if isinstance(text, str) else text
    version = msgspec.json.decode(data, type=_Format).format
    if version != FORMAT:
        raise ConfigError(
            f"shards must be of the format {FORMAT}; got {version!r}. "
            "Use the version of srp that wrote them, or build them again."
        )
    verify_sha256(data, DIGEST, within=_HEAD_BYTES)
    head = msgspec.json.decode(data, type=_Head)
    spec = head.spec
    _check_spec(spec)
    suffixes = member_suffixes(spec)
    manifest = Manifest(
        spec=spec,
        fingerprint=head.fingerprint,
        classes=head.classes,
        class_names=head.class_names,
        num_sources={split: counts.sources for split, counts in head.splits.items()},
        rejects=head.rejects,
        shards=tuple(shard_from_json(shard, suffixes) for shard in head.shards),
    )
    _check_names(manifest)
    for split, counts in head.splits.items():
        if manifest.num_samples(split) != counts.samples:
            raise ValueError(f"{counts.samples} samples of {split}, shards hold another number")
    highest = len(manifest.classes)
    labels = [shard.samples.labels_N for shard in manifest.shards if len(shard.samples)]
    if any(labels_N.min() < 0 or labels_N.max() >= highest for labels_N in labels):
        raise ValueError(f"a label that is none of {len(manifest.classes)} classes")
    return manifest


def load(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        ConfigError: If the folder has none, or one of another version.
        VerificationError: If it is damaged.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"shards must have a {FILE_NAME}; got none in {folder}. "
            f"Build them with: srp-data build-shards SOURCE {folder}"
        ) from None
    try:
        return from_json(text)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


class _Digest(msgspec.Struct):
    name: str
    sha256: str


class _Digests(msgspec.Struct):
    shards: tuple[_Digest, ...]


def still_names(folder: Path, shard: ShardEntry) -> bool:
    """Whether a folder's manifest says of a shard's bytes what it said when it was read.

    It does not where the folder was rebuilt or deleted since. One that cannot be read any more
    says nothing else.
    """
    try:
        data = (folder / FILE_NAME).read_bytes()
        shards = msgspec.json.decode(data, type=_Digests).shards
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, RecursionError, ValueError):
        return True
    return _Digest(shard.name, shard.sha256) in shards


def _damaged(path: Path, error: Exception) -> VerificationError:
    return VerificationError(
        f"a manifest must be whole; got {type(error).__name__}: {error} in {path}. "
        "Delete it and run the same srp-data build-shards command again."
    )


def find(folder: Path) -> Path:
    """Find the folder of shards that a user means.

    Args:
        folder: Has a manifest, or has exactly one subfolder that does.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    if (folder / FILE_NAME).is_file():
        return folder
    below = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(str(path) for path in below)
        raise ConfigError(
            f"SHARDS must mean one folder of shards; got {folder}, which holds {len(below)}: "
            f"{names}. Name one of them."
        )
    raise ConfigError(
        f"SHARDS must be a folder with a {FILE_NAME}; got {folder}, which "
        f"{'has none' if folder.is_dir() else 'does not exist'}. "
        f"Build shards with: srp-data build-shards SOURCE {folder}"
    )
