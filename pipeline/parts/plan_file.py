"""The plan: `OUT/.build/plan.jsonl`, which each part reads in place of the source.

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

from pipeline.build.output import has_manifest
from pipeline.build.prepare import ShardPlan
from pipeline.common.atomic_io import write_file
from pipeline.common.checksum import NO_DIGEST, embed_sha256, verify_sha256
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.sample import PlannedShard
from pipeline.format.spec import DataSpec
from pipeline.parts.numbers import runs_of
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import read_object, write_object
from pipeline.sources.folder import SPLITS, as_listed
from pipeline.sources.image import SourceImage
from pipeline.write.planning import Planned
from pipeline.write.resume import PLAN_NAME, STATE_NAME

FORMAT = "srp-plan/1"
DIGEST = "plan_sha256"
_HEAD_BYTES = 256  # contain the digest
_READ_BYTES = 1 << 16  # at first, of a head of unknown length
_NAME = f"{STATE_NAME}/{PLAN_NAME}"  # in OUT
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
        out: The folder that it lies in, or its address.
        source: The source, as typed when it was planned.
        fingerprint: Digest of the spec and of the source's listing.
        spec: What decides the bytes of samples.
        classes: Names of the class folders; a label is an index into them.
        num_sources: Number of images by split.
        lines: Every shard, by split and index.
        start: Where the lines begin in the file.
    """

    out: Path | RemoteFolder
    source: str
    fingerprint: str
    spec: DataSpec
    classes: tuple[str, ...]
    num_sources: Mapping[str, int]
    lines: tuple[ShardLine, ...]
    start: int

    @property
    def place(self) -> str:
        """Path or address of its file."""
        return _place(self.out)

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


def save_plan(out: Path | RemoteFolder, plan: ShardPlan, *, source: Path | RemoteFolder) -> None:
    """Write a plan; equal sources and specs give equal files.

    Args:
        out: The folder that it is for, which has one for the state of a build, or its address.
        plan: The whole plan.
        source: The source, as typed.

    Raises:
        StoreError: If it cannot be written at the address.
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
    data = b"".join((embed_sha256(msgspec.json.encode(head), DIGEST), b"\n", *texts))
    if isinstance(out, RemoteFolder):
        write_object(out, _NAME, data)
    else:
        write_file(out / _NAME, data)


def _encode(shard: PlannedShard, images: Sequence[SourceImage]) -> bytes:
    rows = [(key, image.path, image.size) for key, image in zip(shard.keys, images, strict=True)]
    return msgspec.json.encode(rows) + b"\n"


def load_plan(out: Path | RemoteFolder) -> SavedPlan:
    """Read the plan in OUT, without the images.

    Raises:
        ConfigError: If OUT has none.
        StoreError: If the address cannot be read.
        VerificationError: If it is damaged.
    """
    try:
        data = _read_head(out)
    except (FileNotFoundError, NotADirectoryError):
        if has_manifest(out):
            fix = f"It is merged already: check it with srp-data verify {out}"
        else:
            fix = f"Make one with: srp-data plan SOURCE {out}"
        raise ConfigError(f"OUT must hold a plan; got none in {out}. {fix}") from None
    try:
        head = _decode(data)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(_place(out), error) from error
    return SavedPlan(
        out=out,
        source=head.source,
        fingerprint=head.fingerprint,
        spec=head.spec,
        classes=head.classes,
        num_sources=head.num_sources,
        lines=head.shards,
        start=len(data),
    )


def _read_head(out: Path | RemoteFolder) -> bytes:
    """Read the first line, with its newline."""
    num_bytes = _READ_BYTES
    while b"\n" not in (data := _read(out, 0, num_bytes)) and len(data) == num_bytes:
        num_bytes *= 8
    return data[: data.find(b"\n") + 1] or data


def _read(out: Path | RemoteFolder, start: int, end: int) -> bytes:
    """Read the bytes of a plan from one offset to before another, as far as it has them."""
    if isinstance(out, RemoteFolder):
        return read_object(out, _NAME, start=start, end=end)
    with (out / _NAME).open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _place(out: Path | RemoteFolder) -> str:
    return out.locate(_NAME) if isinstance(out, RemoteFolder) else str(out / _NAME)


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


def read_shards(
    plan: SavedPlan, numbers: Sequence[int], *, source: Path | RemoteFolder
) -> list[Planned]:
    """Read the images of some shards; of those that follow each other at once.

    Args:
        plan: The plan.
        numbers: Positions of the shards in it, which ascend.
        source: Folder that the images lie in, or its address.

    Raises:
        StoreError: If the plan's address cannot be read.
        VerificationError: If the plan is damaged, or names a file outside of the source.
    """
    starts = [*accumulate((line.num_bytes for line in plan.lines), initial=plan.start)]
    planned = []
    for first, last in runs_of(numbers):
        start = starts[first]
        data = _read(plan.out, start, starts[last + 1])
        for number in range(first, last + 1):
            text = data[starts[number] - start : starts[number + 1] - start]
            try:
                planned.append(_decode_shard(plan.lines[number], text, source))
            except ValueError as error:
                raise _damaged(plan.place, error) from error
    return planned


def _decode_shard(line: ShardLine, text: bytes, source: Path | RemoteFolder) -> Planned:
    if hashlib.sha256(text).hexdigest() != line.sha256:
        raise ValueError(f"another SHA-256 for {line.name}")
    rows = msgspec.json.decode(text, type=tuple[Row, ...])
    images = tuple(_image(path, size, source) for _, path, size in rows)
    keys = tuple(key for key, _, _ in rows)
    wrong = next((key for key in keys if not _KEY.fullmatch(key)), None)
    if wrong is not None:
        raise ValueError(f"the key {wrong!r}")
    return PlannedShard(split=line.split, index=line.index, keys=keys), images


def _image(path: str, size: int, source: Path | RemoteFolder) -> SourceImage:
    """Place an image under the source, wherever that lies for this machine."""
    name = as_listed(path)
    parts = name.split("/")
    if len(parts) < 3 or parts[0] not in SPLITS or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"the path {path!r}")
    split, class_name, _ = path.split("/", 2)
    store = source if isinstance(source, RemoteFolder) else None
    return SourceImage(
        path=path,
        split=split,
        class_name=class_name,
        size=size,
        file=str(source.absolute().joinpath(*parts)) if isinstance(source, Path) else name,
        offset=None,
        store=store,
    )


def _damaged(place: str, error: Exception) -> VerificationError:
    return VerificationError(
        f"a plan must be whole; got {type(error).__name__}: {error} in {place}. Run the same "
        "srp-data plan command again; finished shards are kept."
    )
