"""Samples as a stream, through the webdataset library, from stores of any kind and size.

Each sample's bytes are compared with the manifest before a parser sees them: CRC-32 of its
stretch of the tar, and every header in it. So a cut or flipped shard is an error that names it,
and no plain tar reader's habit of ending early can make an epoch shorter.
"""

import io
import random
import tarfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.codecs import codec_of
from pipeline.format.index import SampleEntry
from pipeline.format.manifest import Manifest
from pipeline.format.sample import Sample, decode_sample
from pipeline.format.ustar import TAR_BLOCK, TAR_END, is_tar_header
from pipeline.stream.partition import Part, Piece, cut_pieces, share_of
from pipeline.stream.store import Source, Store

ALONE = Part()


@dataclass(frozen=True, kw_only=True)
class SampleStream:
    """One split of a store as a stream of samples.

    Attributes:
        store: Where the shards lie.
        manifest: Of that store.
        split: Which samples.
        seed: Of the order of shards and of the buffer; None keeps the manifest's order.
        shuffle_buffer: Samples among which the next one is drawn; 0 keeps each shard's order.
    """

    store: Store
    manifest: Manifest
    split: str
    seed: int | None = None
    shuffle_buffer: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is opened."""
        if not self.manifest.num_samples(self.split):
            raise ConfigError(
                f"a split must hold samples; got 0 in {self.split} of {self.store.address}. "
                f"It has {', '.join(self.manifest.splits)}."
            )
        if self.shuffle_buffer < 0 or (self.shuffle_buffer and self.seed is None):
            raise ConfigError(
                "a shuffle buffer must hold 0 or more samples, and needs a seed; got "
                f"{self.shuffle_buffer} samples, seed {self.seed}. Give a seed, or no buffer."
            )
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"a seed must be at least 0; got {self.seed}.")

    def count(self, *, part: Part = ALONE, equal: bool = False) -> int:
        """Count the samples of one reader's epoch, which is the same for every epoch."""
        return len(share_of(self.manifest.num_samples(self.split), part, equal=equal))

    def pieces(self, epoch: int, *, part: Part = ALONE, equal: bool = False) -> list[Piece]:
        """List what one reader reads of which shards, in order; see `pipeline.stream.partition`."""
        shards = self.manifest.of_split(self.split)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(shards))
            shards = tuple(shards[index] for index in order)
        share = share_of(self.manifest.num_samples(self.split), part, equal=equal)
        return list(cut_pieces(shards, share))

    def samples(
        self, epoch: int = 0, *, part: Part = ALONE, equal: bool = False
    ) -> Iterator[Sample]:
        """Read one reader's samples of one epoch, in an order that (seed, epoch, part) decides.

        Raises:
            VerificationError: If a shard is not what the manifest says.
            DownloadError: If a store cannot be reached any more.
        """
        groups = _read_groups(self.store, self.pieces(epoch, part=part, equal=equal), self.manifest)
        with closing(groups):
            for group in self._shuffled(groups, epoch, part):
                yield _decode(group, self.manifest)

    def _shuffled(self, groups: Iterator["_Group"], epoch: int, part: Part) -> Iterator["_Group"]:
        if not self.shuffle_buffer or self.seed is None:
            return groups
        import webdataset

        state = np.random.SeedSequence((self.seed, epoch, part.index)).generate_state(4)
        draw = random.Random(state.tobytes())  # noqa: S311 - a shuffle is no secret
        shuffle = webdataset.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=draw)
        shuffled: Iterator[_Group] = shuffle(groups)
        return shuffled


class _Group(NamedTuple):
    """A sample that is not decoded yet, and where it was, for errors."""

    key: str
    members: Mapping[str, bytes]
    where: str


def _decode(group: _Group, manifest: Manifest) -> Sample:
    spec = manifest.spec
    return decode_sample(
        group.key,
        group.members,
        plan=spec.crop_layout,
        layout=spec.layout,
        codec=codec_of(spec),
        glimpse_px=spec.glimpse_size,
        where=group.where,
    )


def _read_groups(
    store: Store, pieces: list[Piece], manifest: Manifest
) -> Generator[_Group, None, None]:
    """Read the samples of some pieces, in order."""
    suffixes = manifest.suffixes()
    with closing(_open_ahead(store, pieces)) as opened:
        for piece, source in opened:
            with closing(source), closing(_check_samples(piece, source, suffixes)) as tars:
                yield from _group(tars, piece, source, suffixes)


def _open_ahead(store: Store, pieces: list[Piece]) -> Generator[tuple[Piece, Source], None, None]:
    """Open pieces one by one, and always the next one while the last is being read."""
    stop = threading.Event()
    pending: deque[tuple[Piece, Future[Source]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="srp-stream") as pool:
        try:
            for piece in pieces:
                start = piece.shard.samples[piece.first].offset
                opening = pool.submit(store.open, piece.shard, start=start, stop=stop)
                pending.append((piece, opening))
                if len(pending) > 1:
                    first, ready = pending.popleft()
                    yield first, ready.result()
            while pending:
                first, ready = pending.popleft()
                yield first, ready.result()
        finally:
            stop.set()
            for _, opening in pending:
                if not opening.cancel() and not opening.exception():
                    opening.result().close()


def _check_samples(
    piece: Piece, source: Source, suffixes: tuple[str, ...]
) -> Generator[dict[str, Any], None, None]:
    """Yield each sample's stretch as a tar of its own, once its bytes are those that were written.

    Raises:
        VerificationError: If they are not, or if the shard's end is not.
    """
    shard = piece.shard
    for record in shard.samples[piece.first : piece.stop]:
        data = read_exactly(source, record.length)
        if isal_zlib.crc32(data) != record.crc32 or not _has_members(data, record, suffixes):
            raise _changed(f"{shard.place_of(record)} in {source.place}", source)
        yield {"url": shard.name, "stream": io.BytesIO(data)}
    if piece.stop == len(shard.samples):
        offset = shard.num_bytes - len(TAR_END)
        if read_exactly(source, len(TAR_END) + 1) != TAR_END:
            raise _changed(f"{shard.name} at offset {offset} (its end) in {source.place}", source)


def read_exactly(source: Source, num_bytes: int) -> bytes:
    """Read so many bytes; fewer only at the end."""
    parts = []
    while num_bytes and (data := source.read(num_bytes)):
        parts.append(data)
        num_bytes -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _has_members(data: bytes, record: SampleEntry, suffixes: tuple[str, ...]) -> bool:
    """Whether the headers are those of the sample's members, in order, and of nothing else."""
    for suffix, extent in zip(suffixes, record.extents(), strict=True):
        header = extent.offset - record.offset - TAR_BLOCK
        name = f"{record.key}.{suffix}"
        if not is_tar_header(data[header:][:TAR_BLOCK], name, extent.size):
            return False
    return len(data) == record.length


def _group(
    tars: Iterable[dict[str, Any]], piece: Piece, source: Source, suffixes: tuple[str, ...]
) -> Iterator[_Group]:
    """Let the webdataset library take the samples apart."""
    import webdataset  # it imports torch where torch is installed, which takes seconds

    records = iter(piece.shard.samples[piece.first : piece.stop])
    groups = iter(
        webdataset.tariterators.group_by_keys(webdataset.tariterators.tar_file_expander(tars))
    )
    for record in records:
        where = f"{piece.shard.place_of(record)} in {source.place}"
        fields = _next_group(groups, where, source)
        if fields.get("__key__") != record.key or any(suffix not in fields for suffix in suffixes):
            raise _changed(where, source)
        yield _Group(record.key, {suffix: bytes(fields[suffix]) for suffix in suffixes}, where)
    if next(groups, None) is not None:  # this also checks the shard's end
        raise _changed(f"{piece.shard.name} after its last sample in {source.place}", source)


def _next_group(
    groups: Iterator[Mapping[str, Any]], where: str, source: Source
) -> Mapping[str, Any]:
    try:
        return next(groups, {})
    except (tarfile.TarError, ValueError) as error:  # a manifest that fits bytes which are no tar
        raise _changed(where, source) from error


def _changed(where: str, source: Source) -> VerificationError:
    return VerificationError(
        f"a sample's bytes must be those that were written; got others in {where}. {source.fix}"
    )
