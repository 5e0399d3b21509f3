"""The plan on disk: `OUT/.build/plan.jsonl`, which each part reads in place of the source.

The first line is the head, with its own SHA-256. Then comes a line for each shard: key, path and
size of each image. The head holds length and SHA-256 of each line, so that a part reads its own
lines alone.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import msgspec

from pipeline.build.prepare import ShardPlan
from pipeline.common.atomic_io import atomic_write
from pipeline.common.checksum import NO_DIGEST, embed_sha256, verify_sha256
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest
from pipeline.format.sample import PlannedShard
from pipeline.format.spec import DataSpec
from pipeline.sources.folder import SPLITS, as_listed
from pipeline.sources.image import SourceImage
from pipeline.write.planning import Planned
from pipeline.write.resume import PLAN_NAME, STATE_NAME

FORMAT = "srp-plan/1"
DIGEST = "plan_sha256"
_HEAD_BYTES = 256  # contain the digest
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_/-]*")

Row = tuple[str, str, int]
"""Key, path and size of an image."""


class ShardLine(msgspec.Struct, frozen=True, array_like=True):
    """One shard of a plan, and its line: `num_bytes` long, with its newline."""

    split: str
    index: int
    num_images: int
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """File name of the shard."""
        return PlannedShard(split=self.split, index=self.index, keys=()).name


class _Head(msgspec.Struct, kw_only=True):
    format: str = FORMAT
    plan_sha256: str = NO_DIGEST
    source: str
    fingerprint: str
    spec: DataSpec
    classes: tuple[str, ...]
    num_sources: dict[str, int]
    shards: tuple[ShardLine, ...]


@dataclass(frozen=True, kw_only=True)
class SavedPlan:
    """A plan that was read, without its images.

    Attributes:
        path: Its file.
        source: The source, as typed when it was planned.
        fingerprint: Digest of the spec and of the source's listing.
        spec: What decides the bytes of samples.
        classes: Names of the class folders; a label is an index into them.
        num_sources: Number of images by split.
        lines: Every shard, by split and index.
        start: Where the lines begin in the file.
    """

    path: Path
    source: str
    fingerprint: str
    spec: DataSpec
    classes: tuple[str, ...]
    num_sources: Mapping[str, int]
    lines: tuple[ShardLine, ...]
    start: int

    def with_images(self, shards: Sequence[Planned] = ()) -> ShardPlan:
        """Give the plan with the images of some of its shards."""
        return ShardPlan(
            spec=self.spec,
            fingerprint=self.fingerprint,
            classes=self.classes,
            num_sources=self.num_sources,
            shards=shards,
            skipped=(),
        )


def save_plan(state: Path, plan: ShardPlan, *, source: Path) -> None:
    """Write a plan; equal sources and specs give equal files.

    Args:
        state: OUT's folder for the state of a build.
        plan: The whole plan.
        source: The source, as typed.
    """
    texts = [_encode(*planned) for planned in plan.shards]
    head = _Head(
        source=str(source),
        fingerprint=plan.fingerprint,
        spec=plan.spec,
        classes=plan.classes,
        num_sources=dict(plan.num_sources),
        shards=tuple(
            ShardLine(
                shard.split, shard.index, len(images), len(text), hashlib.sha256(text).hexdigest()
            )
            for (shard, images), text in zip(plan.shards, texts, strict=True)
        ),
    )
    with atomic_write(state / PLAN_NAME, num_bytes=sum(map(len, texts))) as file:
        file.write(embed_sha256(msgspec.json.encode(head), DIGEST) + b"\n")
        file.writelines(texts)


def _encode(shard: PlannedShard, images: Sequence[SourceImage]) -> bytes:
    rows = [(key, image.path, image.size) for key, image in zip(shard.keys, images, strict=True)]
    return msgspec.json.encode(rows) + b"\n"


def load_plan(out: Path) -> SavedPlan:
    """Read a folder's plan, without the images.

    Raises:
        ConfigError: If the folder has none.
        VerificationError: If it is damaged.
    """
    path = out / STATE_NAME / PLAN_NAME
    try:
        with path.open("rb") as file:
            data = file.readline()
    except (FileNotFoundError, NotADirectoryError):
        if (out / manifest.FILE_NAME).exists():
            fix = f"It is merged already: check it with srp-data verify {out}"
        else:
            fix = f"Make one with: srp-data plan SOURCE {out}"
        raise ConfigError(f"OUT must hold a plan; got none in {out}. {fix}") from None
    try:
        head = _decode(data)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    return SavedPlan(
        path=path,
        source=head.source,
        fingerprint=head.fingerprint,
        spec=head.spec,
        classes=head.classes,
        num_sources=head.num_sources,
        lines=head.shards,
        start=len(data),
    )


def _decode(data: bytes) -> _Head:
    verify_sha256(data.removesuffix(b"\n"), DIGEST, within=_HEAD_BYTES)
    head = msgspec.json.decode(data, type=_Head)
    if head.format != FORMAT:
        raise ValueError(f"the format {head.format!r}, not {FORMAT}")
    if not _FINGERPRINT.fullmatch(head.fingerprint):
        raise ValueError(f"the fingerprint {head.fingerprint!r}")
    for line in head.shards:
        if line.split not in SPLITS or line.index < 0:
            raise ValueError(f"a shard {line.index} of {line.split!r}")
    return head


def read_shards(plan: SavedPlan, numbers: Sequence[int], *, source: Path) -> list[Planned]:
    """Read the images of some shards.

    Args:
        plan: The plan.
        numbers: Positions of the shards in it.
        source: Folder that the images lie in.

    Raises:
        VerificationError: If the plan is damaged, or names a file outside of the source.
    """
    starts = [*accumulate((line.num_bytes for line in plan.lines), initial=plan.start)]
    planned = []
    with plan.path.open("rb") as file:
        for number in numbers:
            line = plan.lines[number]
            file.seek(starts[number])
            text = file.read(line.num_bytes)
            try:
                planned.append(_decode_shard(line, text, source))
            except ValueError as error:
                raise _damaged(plan.path, error) from error
    return planned


def _decode_shard(line: ShardLine, text: bytes, source: Path) -> Planned:
    if hashlib.sha256(text).hexdigest() != line.sha256:
        raise ValueError(f"another SHA-256 for {line.name}")
    rows = msgspec.json.decode(text, type=tuple[Row, ...])
    images = tuple(_image(path, size, source) for _, path, size in rows)
    keys = tuple(key for key, _, _ in rows)
    wrong = next((key for key in keys if not _KEY.fullmatch(key)), None)
    if wrong is not None:
        raise ValueError(f"the key {wrong!r}")
    return PlannedShard(split=line.split, index=line.index, keys=keys), images


def _image(path: str, size: int, source: Path) -> SourceImage:
    """Place an image under the source, wherever that lies on this machine."""
    parts = as_listed(path).split("/")
    if len(parts) < 3 or parts[0] not in SPLITS or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"the path {path!r}")
    split, class_name, _ = path.split("/", 2)
    return SourceImage(
        path=path,
        split=split,
        class_name=class_name,
        size=size,
        file=str(source.absolute().joinpath(*parts)),
        offset=None,
    )


def _damaged(path: Path, error: Exception) -> VerificationError:
    return VerificationError(
        f"a plan must be whole; got {type(error).__name__}: {error} in {path}. Run the same "
        "srp-data plan command again; finished shards are kept."
    )
