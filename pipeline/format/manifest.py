"""The contents of a folder of shards: `manifest.json`.

A shard that the manifest does not name does not exist. The manifest is written last: a folder with
one is complete. Up to `INLINE_SAMPLES` samples it holds the index of every shard; beyond, it names
a file for each (`index_file.py`), and its size follows the number of shards alone.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from pipeline.common.checksum import NO_DIGEST, embed_sha256, verify_sha256
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.codecs import codec_of
from pipeline.format.crops import Box
from pipeline.format.index import (
    SampleIndex,
    ShardEntry,
    check_labels,
    check_split,
    decode_shard,
    encode_shard,
)
from pipeline.format.index_file import (
    Files,
    IndexFiles,
    LocalFiles,
    decode_row,
    encode_index,
    encode_row,
    index_name,
)
from pipeline.format.sample import member_suffixes, npy_shapes
from pipeline.format.spec import CODECS, LAYOUTS, DataSpec

FORMAT = "srp-shards/3"
SHARDED_FORMAT = "srp-shards/4"  # the same shards, with an index file for each
INLINE_SAMPLES = 2_000_000  # which take 1.3 s to read, and 180 MB
FILE_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
LARGEST_PX = 1 << 16  # longest side that JPEG can store
DIGEST = "manifest_sha256"
_HEAD_BYTES = 256  # contain the digest
_NOT_ASCII = re.compile(r"[^\n -~]")


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A source image that is in no shard, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a folder of shards holds.

    Attributes:
        spec: What decides the bytes of the samples.
        fingerprint: Hash of the spec and the source's listing; a build resumes only its own.
        classes: Folder names of the classes; a label is an index into them.
        class_names: Readable names of the classes.
        num_sources: Source images per split, including rejected ones.
        rejects: Images that are in no shard.
        shards: Shards by split, in order.
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

    @property
    def has_index_files(self) -> bool:
        """Whether the indexes of its shards are files of their own."""
        return sum(len(shard.samples) for shard in self.shards) > INLINE_SAMPLES

    def suffixes(self) -> tuple[str, ...]:
        """List every sample's members in tar order."""
        return member_suffixes(self.spec)

    def npy_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the members that are `.npy`, by suffix."""
        return npy_shapes(self.spec)


def fingerprint(spec: DataSpec, listing: Iterable[tuple[str, int]]) -> str:
    """Hash what decides the shards' bytes: format, spec, and each source's path and size."""
    decisive = {"format": FORMAT, **asdict(spec)}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    for path, size in listing:
        digest.update(f"{path}\0{size}\n".encode())
    return digest.hexdigest()


class _Candidate(msgspec.Struct):
    name: str
    box_px: Box
    box: tuple[float, float, float, float]


class _Counts(msgspec.Struct):
    sources: int
    samples: int


class _File(msgspec.Struct, kw_only=True):
    """The fields of `manifest.json`; shards are parsed one by one."""

    format: str = FORMAT
    manifest_sha256: str = NO_DIGEST
    fingerprint: str
    lossy: bool
    spec: DataSpec
    candidates: tuple[_Candidate, ...]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: dict[str, _Counts]
    rejects: tuple[Reject, ...]
    shards: tuple[msgspec.Raw, ...]


class _Format(msgspec.Struct):
    format: str


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest with its own SHA-256; equal manifests give equal bytes.

    The text is ASCII. Each shard has one line: people read the head, and a diff names the shard.
    """
    layout = manifest.spec.crop_layout
    candidates = zip(layout.names, layout.boxes, layout.normalised(), strict=True)
    encode = encode_row if manifest.has_index_files else encode_shard
    file = _File(
        format=SHARDED_FORMAT if manifest.has_index_files else FORMAT,
        fingerprint=manifest.fingerprint,
        lossy=codec_of(manifest.spec).is_lossy,
        spec=manifest.spec,
        candidates=tuple(_Candidate(*candidate) for candidate in candidates),
        classes=manifest.classes,
        class_names=manifest.class_names,
        splits={
            split: _Counts(sources=count, samples=manifest.num_samples(split))
            for split, count in manifest.num_sources.items()
        },
        rejects=manifest.rejects,
        shards=(),
    )
    head = msgspec.json.format(msgspec.json.encode(file), indent=1).decode()
    head = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], head)
    shards = b",\n".join(bytes(encode(shard)) for shard in manifest.shards)
    data = head.removesuffix("[]\n}").encode() + b"[\n" + shards + b"\n]}\n"
    return embed_sha256(data, DIGEST)


def index_files(manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each index file of a manifest that names some."""
    if manifest.has_index_files:
        for shard in manifest.shards:
            yield index_name(shard.name), encode_index(shard.samples.in_memory())


def _check_spec(spec: DataSpec) -> None:
    """Check the sizes and choices of a spec before memory is allocated for it.

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
    """Check the names of splits and shards.

    Raises:
        ValueError: If one is unsafe, occurs twice, or is of an unknown split.
    """
    for split in manifest.splits:
        check_split(split)
    seen = set()
    for shard in manifest.shards:
        if shard.split not in manifest.num_sources:
            raise ValueError(f"{shard.name} of {shard.split}, an unknown split")
        if shard.name in seen:
            raise ValueError(f"{shard.name} twice")
        seen.add(shard.name)


def decode_manifest(data: bytes, files: Files) -> Manifest:
    """Read a manifest.

    Args:
        data: Its bytes.
        files: The folder's, from which index files are read when they are needed.

    Raises:
        ConfigError: If another version of the format wrote it.
        OverflowError, RecursionError, TypeError, ValueError: If it is damaged.
    """
    version = msgspec.json.decode(data, type=_Format).format
    if version not in (FORMAT, SHARDED_FORMAT):
        raise ConfigError(
            f"shards must be of the format {FORMAT} or {SHARDED_FORMAT}; got {version!r}. "
            "Use the version of srp that wrote them, or build them again."
        )
    verify_sha256(data, DIGEST, within=_HEAD_BYTES)
    file = msgspec.json.decode(data, type=_File)
    _check_spec(file.spec)
    manifest = Manifest(
        spec=file.spec,
        fingerprint=file.fingerprint,
        classes=file.classes,
        class_names=file.class_names,
        num_sources={split: counts.sources for split, counts in file.splits.items()},
        rejects=file.rejects,
        shards=_decode_shards(file, files),
    )
    _check_names(manifest)
    for split, counts in file.splits.items():
        if manifest.num_samples(split) != counts.samples:
            raise ValueError(f"{counts.samples} samples of {split}, shards hold another number")
    for shard in manifest.shards:
        if isinstance(shard.samples, SampleIndex):
            check_labels(shard.samples, num_classes=len(manifest.classes))
    return manifest


def _decode_shards(file: _File, files: Files) -> tuple[ShardEntry, ...]:
    suffixes = member_suffixes(file.spec)
    if file.format == FORMAT:
        return tuple(decode_shard(shard, suffixes) for shard in file.shards)
    indexes = IndexFiles(files, suffixes=suffixes, num_classes=len(file.classes))
    return tuple(decode_row(shard, indexes) for shard in file.shards)


def load(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        ConfigError: If the folder has none, or one of another version.
        VerificationError: If it is damaged.
    """
    path = folder / FILE_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"shards must have a {FILE_NAME}; got none in {folder}. "
            f"Build them with: srp-data build-shards SOURCE {folder}"
        ) from None
    try:
        return decode_manifest(data, LocalFiles(folder=folder))
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


class _Digest(msgspec.Struct):
    name: str
    sha256: str


class _Digests(msgspec.Struct):
    shards: tuple[_Digest, ...]


def still_names(folder: Path, shard: ShardEntry) -> bool:
    """Whether a folder's manifest still has a shard's entry.

    It does not if the folder was rebuilt or deleted since. A manifest that can no longer be read
    counts as unchanged.
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
        folder: A folder with a manifest, or with exactly one subfolder that has one.

    Raises:
        ConfigError: If there is no manifest, or more than one.
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
