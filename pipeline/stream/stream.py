"""Samples as a stream, front to back, from a folder or an address, larger than the disk or not.

Before a sample is decoded its bytes are compared with the manifest: the CRC-32 of its stretch of
the tar, and every header in it. A cut or flipped shard is therefore an error that names it, never a
shorter epoch. Members are taken from where the manifest's index says that they lie; no tar is
parsed.
"""

import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.manifest import Manifest
from pipeline.format.sample import GLIMPSES, LABEL, META, ORIGINALS, Sample, decode_sample
from pipeline.format.ustar import TAR_END
from pipeline.remote.pace import Reading
from pipeline.stream.partition import Part, Piece, cut_pieces, share_of
from pipeline.stream.prefetch import open_ahead
from pipeline.stream.store import RemoteStore, Source, Store, open_store

ALONE = Part()


class SampleStream:
    """One split of some shards as a stream of samples.

    Read it with `samples`, or put it first in a pipeline of the webdataset library:

        wds.DataPipeline(SampleStream("s3://bucket/shards", "train", seed=0), wds.shuffle(1000))

    Attributes:
        store: Where the shards lie.
        manifest: What the store holds.
        split: Which samples.
        seed: Decides the order of shards and of the buffer; None keeps the manifest's order.
        shuffle_buffer: Samples among which the next one is drawn; 0 keeps each shard's order.
        epoch: Which epoch a webdataset pipeline reads next; each pass raises it by one. Set it
            before a pass whose DataLoader starts new workers, as they start from this number.
    """

    def __init__(
        self,
        shards: str | Path | Store,
        split: str,
        *,
        manifest: Manifest | None = None,
        seed: int | None = None,
        shuffle_buffer: int = 0,
    ) -> None:
        """Read the manifest and check the settings; no shard is opened yet.

        Args:
            shards: Folder, address, or what `open_store` returned, which may have a cache.
            split: Which samples.
            manifest: What the store holds, if it was read before, or the part of it to stream.
            seed: At least 0; see the class.
            shuffle_buffer: At least 0; needs a seed.

        Raises:
            ConfigError: If there is no such split, or a setting is out of its range.
            DownloadError: If the manifest cannot be fetched.
            VerificationError: If the manifest is damaged.
        """
        self.store = open_store(shards) if isinstance(shards, str | Path) else shards
        self.manifest = self.store.load_manifest() if manifest is None else manifest
        self.split = split
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.epoch = 0
        self._reading = Reading()
        if not self.manifest.num_samples(split):
            raise ConfigError(
                f"a split must hold samples; got 0 in {split} of {self.store.address}. "
                f"It has {', '.join(self.manifest.splits)}."
            )
        if shuffle_buffer < 0 or (shuffle_buffer and seed is None):
            raise ConfigError(
                "a shuffle buffer must hold 0 or more samples, and needs a seed; got "
                f"{shuffle_buffer} samples, seed {seed}. Give a seed, or no buffer."
            )
        if seed is not None and seed < 0:
            raise ConfigError(f"a seed must be at least 0; got {seed}.")

    @property
    def waited_s(self) -> float:
        """Time that this process has spent on waiting for this stream's bytes so far, s.

        The share of a pass is what it adds, by the time that the pass takes.
        """
        return self._reading.waited_s

    @property
    def fetched_bytes(self) -> int:
        """Bytes that this process has fetched from the store's address so far."""
        return self.store.link.num_bytes if isinstance(self.store, RemoteStore) else 0

    def count(self, *, part: Part = ALONE, equal: bool = False) -> int:
        """Count the samples of one reader's epoch, which is the same for every epoch."""
        return len(share_of(self.manifest.num_samples(self.split), part, equal=equal))

    def samples(
        self, epoch: int = 0, *, part: Part = ALONE, equal: bool = False
    ) -> Iterator[Sample]:
        """Read one reader's samples of one epoch, in an order that (seed, epoch, part) decides.

        Args:
            epoch: From 0.
            part: Which reader of how many.
            equal: Whether every rank gets the same number; see `partition.share_of`.

        Raises:
            VerificationError: If a shard is not what the manifest says.
            DownloadError: If the store cannot be reached any more.
        """
        with closing(self._encoded(epoch, part, equal)) as found:
            yield from map(self._decode, found)

    def __call__(self) -> Iterator[dict[str, Any]]:
        """Read the next epoch as the first stage of a webdataset pipeline.

        Each rank and each worker of a DataLoader reads its own part, so `wds.split_by_node` and
        `wds.split_by_worker` must not follow.

        Yields:
            One dict a sample, decoded, the same for every layout and codec: `__key__`, `__url__`
            (of the shard), `originals.npy` (uint8 `(K, 3, H, W)`), `glimpses.npy` (uint8
            `(K, 1, H, W)`), `cls` (the label) and `json` (the origin).

        Raises:
            VerificationError, DownloadError: As `samples`.
        """
        from webdataset.utils import pytorch_worker_info  # imports torch, which takes seconds

        rank, world_size, worker, num_workers = pytorch_worker_info()
        part = Part(rank=rank, world_size=world_size, worker=worker, num_workers=num_workers)
        epoch, self.epoch = self.epoch, self.epoch + 1
        with closing(self._encoded(epoch, part, equal=False)) as found:
            for encoded in found:
                sample = self._decode(encoded)
                yield {
                    "__key__": sample.key,
                    "__url__": f"{self.store.address}/{encoded.shard_name}",
                    ORIGINALS: sample.originals,
                    GLIMPSES: sample.glimpses,
                    LABEL: sample.label,
                    META: vars(sample.meta),
                }

    def _encoded(self, epoch: int, part: Part, equal: bool) -> Generator["_Encoded", None, None]:
        """Read one reader's samples, shuffled but not decoded, which takes less memory."""
        pieces = self._pieces(epoch, part, equal)
        suffixes = self.manifest.suffixes()
        with closing(_read_pieces(self.store, pieces, suffixes, self._reading)) as found:
            if self.seed is None or not self.shuffle_buffer:
                yield from found
                return
            state = np.random.SeedSequence((self.seed, epoch, part.index)).generate_state(4)
            yield from _shuffle(found, self.shuffle_buffer, state.tobytes())

    def _pieces(self, epoch: int, part: Part, equal: bool) -> Iterator[Piece]:
        """List what one reader reads of which shards, in order."""
        shards = self.manifest.of_split(self.split)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(shards))
            shards = tuple(shards[index] for index in order)
        share = share_of(self.manifest.num_samples(self.split), part, equal=equal)
        return cut_pieces(shards, share)

    def _decode(self, encoded: "_Encoded") -> Sample:
        spec = self.manifest.spec
        return decode_sample(spec, encoded.key, encoded.members, where=encoded.where)


class _Encoded(NamedTuple):
    """A sample that is not decoded yet, and its place for errors."""

    key: str
    members: Mapping[str, memoryview]
    shard_name: str
    where: str


def _shuffle(
    samples: Iterator[_Encoded], size: int, seed: bytes
) -> Generator[_Encoded, None, None]:
    """Draw each sample from a buffer of `size`, as `webdataset.shuffle` does once it is full."""
    draw = random.Random(seed)  # noqa: S311 - a shuffle is no secret
    buffer: list[_Encoded] = []

    def pick() -> _Encoded:
        index = draw.randint(0, len(buffer) - 1)
        buffer[index], buffer[-1] = buffer[-1], buffer[index]
        return buffer.pop()

    for sample in samples:
        buffer.append(sample)
        if len(buffer) >= size:
            yield pick()
    while buffer:
        yield pick()


def _read_pieces(
    store: Store, pieces: Iterator[Piece], suffixes: tuple[str, ...], reading: Reading
) -> Generator[_Encoded, None, None]:
    """Read the samples of some pieces, in order."""

    def read(source: Source, num_bytes: int) -> bytes:
        with reading.waiting():
            return source.read(num_bytes)

    with closing(open_ahead(store, pieces, reading)) as opened:
        for piece, source in opened:
            with closing(source):
                counted = replace(source, read=partial(read, source))
                yield from _read_piece(piece, counted, suffixes)


def _read_piece(piece: Piece, source: Source, suffixes: tuple[str, ...]) -> Iterator[_Encoded]:
    """Yield each sample once its bytes are those that were written.

    Raises:
        VerificationError: If they are not, or if the shard's end is not.
    """
    shard = piece.shard
    for record in shard.samples[piece.first : piece.stop]:
        where = f"{shard.place_of(record)} in {source.place}"
        data = memoryview(read_exactly(source, record.length))
        members = record.members_in(data, suffixes)
        if members is None:
            raise _changed(where, source)
        yield _Encoded(record.key, members, shard.name, where)
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


def _changed(where: str, source: Source) -> VerificationError:
    return VerificationError(
        f"a sample's bytes must be those that were written; got others in {where}. {source.fix()}"
    )
