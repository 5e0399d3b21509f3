"""What a stream reads next, opened or fetched while it reads what lies before.

From an address without a cache come blocks of shards, each by a request of its own, into memory;
with a cache whole shards. Of a folder, or a web server that sends no part of a file, one file or
connection is opened ahead and read as it goes.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from pipeline.remote.pace import MAX_AT_ONCE, Link, Reading
from pipeline.stream.partition import Piece, cut_blocks, extent_of
from pipeline.stream.store import RemoteStore, Source, Store

BLOCK_BYTES = 1 << 23  # of a shard that one request fetches
AHEAD_BYTES = 1 << 27  # of blocks that one reader holds in memory


def open_ahead(
    store: Store, pieces: Iterator[Piece], reading: Reading
) -> Generator[tuple[Piece, Source], None, None]:
    """Open pieces in order, and others while one is being read: as many as keep up.

    Args:
        store: Where they lie.
        pieces: What is read.
        reading: Who reads it; it is told what is taken, and of each wait.

    Yields:
        Each piece, or a block of it, and its bytes. Close them before the next.

    Raises:
        VerificationError: If a shard is missing or has another length.
        DownloadError: If the store cannot be reached.
    """
    reading.begin()
    with reading.waiting():
        plan = _plan(store, pieces, reading)
    stop = threading.Event()
    pending: deque[_Opening] = deque()

    def take() -> Generator[tuple[Piece, Source], None, None]:
        piece, num_bytes, opening = pending.popleft()
        with reading.waiting():
            source = opening.result()
        yield piece, source
        reading.take(num_bytes)

    with (
        ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="srp-stream") as pool,
        closing(plan.pieces) as coming,
    ):
        try:
            for piece in coming:
                opening = pool.submit(plan.open, piece, stop)
                pending.append(_Opening(piece, plan.size_of(piece), opening))
                while plan.is_enough([each.num_bytes for each in pending], reading):
                    yield from take()
            while pending:
                yield from take()
        finally:
            stop.set()
            for _, _, opening in pending:
                if not opening.cancel() and not opening.exception():
                    opening.result().close()


class _Opening(NamedTuple):
    """A piece that is being opened, and the size of what is fetched for it."""

    piece: Piece
    num_bytes: int
    opening: Future[Source]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What to open in which order, and how.

    Attributes:
        pieces: What is opened and read one by one.
        open: Opens one; it ends in CancelledError once the event is set.
        size_of: Says how many bytes are fetched for one.
        room_bytes: What those ahead and the one that is being read may take; None for all.
        link: What is measured of the store; None opens one ahead.
    """

    pieces: Generator[Piece, None, None]
    open: Callable[[Piece, threading.Event], Source]
    size_of: Callable[[Piece], int]
    room_bytes: int | None
    link: Link | None

    def is_enough(self, sizes: list[int], reading: Reading) -> bool:
        """Whether to read the first of those that are opened before the next one is.

        Args:
            sizes: Of all that are opened, at least one, bytes.
            reading: Who reads them.
        """
        if len(sizes) == 1:
            return False
        if self.room_bytes is not None and sum(sizes) + sizes[-1] > self.room_bytes:
            return True
        return len(sizes) > reading.num_at_once(
            self.link, part_bytes=fmean(sizes), limit=MAX_AT_ONCE
        )


def _plan(store: Store, pieces: Iterator[Piece], reading: Reading) -> _Plan:
    """Say what is opened ahead: blocks in memory, shards in the cache, else a file or connection.

    Raises:
        DownloadError: If the store cannot be reached.
    """

    def open_piece(piece: Piece, stop: threading.Event) -> Source:
        start, _ = extent_of(piece)  # which may read the shard's index file
        return store.open(piece.shard, start=start, stop=stop)

    def as_it_is(room_bytes: int | None, link: Link | None) -> _Plan:
        return _Plan(
            pieces=(piece for piece in pieces), open=open_piece,
            size_of=lambda piece: piece.shard.num_bytes, room_bytes=room_bytes, link=link,
        )  # fmt: skip

    if not isinstance(store, RemoteStore):
        return as_it_is(None, None)
    if store.cache:
        return as_it_is(store.cache.limit_bytes, store.link)
    if not store.has_ranges():
        return as_it_is(None, None)
    return _plan_blocks(store, pieces, reading)


def _plan_blocks(store: RemoteStore, pieces: Iterator[Piece], reading: Reading) -> _Plan:
    def fetch(block: Piece, stop: threading.Event) -> Source:
        start, end = extent_of(block)
        if block.stop == len(block.shard.samples):
            end = block.shard.num_bytes + 1  # no byte may follow
        return store.fetch(block.shard, start=start, end=end, stop=stop)

    def size_of(block: Piece) -> int:
        start, end = extent_of(block)
        return end - start

    return _Plan(
        pieces=_cut(pieces, reading), open=fetch, size_of=size_of, room_bytes=AHEAD_BYTES,
        link=store.link,
    )  # fmt: skip


def _cut(pieces: Iterator[Piece], reading: Reading) -> Generator[Piece, None, None]:
    """Cut pieces into blocks: the next piece, whose index may be a file, while one is read."""

    def cut(piece: Piece) -> list[Piece]:
        return list(cut_blocks(piece, BLOCK_BYTES))

    def take() -> list[Piece]:
        with reading.waiting():
            return cutting.popleft().result()

    cutting: deque[Future[list[Piece]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="srp-stream") as pool:
        for piece in pieces:
            cutting.append(pool.submit(cut, piece))
            if len(cutting) > 1:
                yield from take()
        while cutting:
            yield from take()
