"""Remote shards as memory maps: each is fetched whole into the cache when it is first needed.

For batches in order, a few threads fetch their shards in the order of first need, ahead of the
reading. Where the cache has a limit, a shard that no later batch needs may leave it again.

Axes: B samples of a batch.
"""

import mmap
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.format.index import ShardEntry
from pipeline.pixels import Pixels
from pipeline.read.memory_map import reserve_files
from pipeline.remote.pace import MAX_AT_ONCE, Reading
from pipeline.stream.store import RemoteStore, fix_of_kept

Numbers = NDArray[np.int64]


class FetchedShards:
    """The bytes of some shards of a remote folder, mapped from its cache.

    Safe to share among threads, and to send to other processes, which map the shards again. It is
    a `pipeline.read.memory_map.ShardBytes`.
    """

    def __init__(self, store: RemoteStore, shards: Sequence[ShardEntry]) -> None:
        """Name the shards; nothing is fetched yet.

        Args:
            store: Where they lie; it has a cache.
            shards: Shards to map; `number` is a position among them.

        Raises:
            ConfigError: If the process may not open as many files.
        """
        if store.cache is None:
            raise RuntimeError("shards can be mapped only from a cache")
        self._store, self._cache, self._shards = store, store.cache, tuple(shards)
        self._set_up()

    def _set_up(self) -> None:
        """Initialise the state of this process."""
        self._maps: dict[int, _Mapped] = {}
        self.reading = Reading()
        total_bytes = sum(shard.num_bytes for shard in self._shards)
        self._mean_bytes = total_bytes / max(1, len(self._shards))
        reserve_files(self, len(self._shards))

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self._store, "shards": self._shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def num_unmapped(self) -> int:
        """Count the shards whose files are not open yet."""
        return len(self._shards) - len(self._maps)

    @property
    def limit_bytes(self) -> int | None:
        """Bytes that may be on this machine at once; None for all."""
        return self._cache.limit_bytes

    @property
    def waited_s(self) -> float:
        """Time that readers of this process have waited for shards so far, s."""
        return self.reading.waited_s

    @property
    def fetched_bytes(self) -> int:
        """Bytes that this process has fetched from the store so far."""
        return self._store.link.num_bytes

    def num_at_once(self) -> int:
        """Say how many shards to fetch at once, so that the reader does not wait."""
        return self.reading.num_at_once(
            self._store.link, part_bytes=self._mean_bytes, limit=MAX_AT_ONCE
        )

    def written_ns(self, number: int) -> int:
        """Check a shard's file, and fetch it if it is not there.

        Returns:
            Time of the last write, by the system's clock, ns.

        Raises:
            DownloadError: If it cannot be fetched.
            VerificationError: If it is not what the manifest says.
        """
        mapped = self._mapped(number)
        if mapped.file.size() != self._shards[number].num_bytes:  # cut: reading on would kill us
            self.let_go(number)
            mapped = self._mapped(number)
        try:
            return self._cache.path_of(self._shards[number]).stat().st_mtime_ns
        except FileNotFoundError:  # removed by hand; what is mapped stays
            return mapped.written_ns

    def fix_of(self, number: int) -> str:
        """Return the fix of an error in a shard's bytes."""
        return fix_of_kept(self._cache.path_of(self._shards[number]))

    def bytes_of(self, number: int) -> Pixels:
        """View a whole shard, uint8; it is fetched if it is not there."""
        return self._mapped(number).pixels

    @contextmanager
    def ahead(self, shard_batches: Iterable[Numbers]) -> Iterator["FetchAhead"]:
        """Fetch the shards of batches to come; see `ShardBytes.ahead`."""
        fetching = FetchAhead(self, _needs_of(shard_batches))
        try:
            fetching.start()
            yield fetching
        finally:
            fetching.stop()

    def size_of(self, number: int) -> int:
        """Give a shard's size, bytes."""
        return self._shards[number].num_bytes

    def is_mapped(self, number: int) -> bool:
        """Whether a shard is mapped."""
        return number in self._maps

    def fetch(self, number: int, stop: threading.Event) -> "_Mapped":
        """Map a shard, fetched before if it is not in the cache.

        Raises:
            CancelledError: If `stop` is set.
            DownloadError: If it cannot be fetched.
            VerificationError: If it is not what the manifest says.
        """
        # Closing the file does not unlock it: the map has a copy of its descriptor, so the shard
        # stays in the cache until the last view of the map is gone.
        with self._store.open_kept(self._shards[number], stop=stop) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            written_ns = os.fstat(file.fileno()).st_mtime_ns
        self._maps[number] = found = _Mapped(mapped, np.frombuffer(mapped, np.uint8), written_ns)
        return found

    def let_go(self, number: int) -> None:
        """Unmap a shard once its last view is gone; the cache may remove it then."""
        self._maps.pop(number, None)

    def _mapped(self, number: int) -> "_Mapped":
        found = self._maps.get(number)
        if found is None:
            if self.limit_bytes is not None:  # reading at random keeps one shard at a time
                self._maps.clear()
            with self.reading.waiting():
                found = self.fetch(number, threading.Event())
        return found


class _Mapped(NamedTuple):
    """A mapped shard, and when its file was last written."""

    file: mmap.mmap
    pixels: Pixels
    written_ns: int


class _Needs(NamedTuple):
    """The first and the last batch that need each shard, in the order of first need."""

    first: dict[int, int]
    last: dict[int, int]


def _needs_of(shard_batches: Iterable[Numbers]) -> _Needs:
    batches = [np.asarray(shards_B, np.int64) for shards_B in shard_batches]
    shards = np.concatenate([*batches, np.zeros(0, np.int64)])
    ends = np.cumsum([len(shards_B) for shards_B in batches])
    numbers, begins = np.unique(shards, return_index=True)
    _, from_end = np.unique(shards[::-1], return_index=True)
    first = np.searchsorted(ends, begins, side="right")
    last = np.searchsorted(ends, len(shards) - 1 - from_end, side="right")
    order = np.argsort(begins)
    keys = numbers[order].tolist()
    return _Needs(
        dict(zip(keys, first[order].tolist(), strict=True)),
        dict(zip(keys, last[order].tolist(), strict=True)),
    )


class FetchAhead:
    """Fetches the shards of batches to come, in the order of first need.

    At most `MAX_AT_ONCE` at the same time: those that the next batch waits for, and of the others
    as many as keep up with the batches that are used, once there is room in the cache's limit
    beside those that are still needed.
    """

    def __init__(self, fetched: FetchedShards, needs: _Needs) -> None:
        self._fetched, self._needs = fetched, needs
        self._ready = {number for number in needs.first if fetched.is_mapped(number)}
        self._queue = deque(number for number in needs.first if number not in self._ready)
        self._coming = dict.fromkeys(self._queue)  # not here yet, in the order of first need
        self._num_fetching = 0
        self._first_bytes: Counter[int] = Counter()  # of shards that a batch is the first to need
        for number, batch in needs.first.items():
            self._first_bytes[batch] += fetched.size_of(number)
        self._leaving: dict[int, list[int]] = {}
        for number, batch in needs.last.items():
            self._leaving.setdefault(batch, []).append(number)
        # Of shards that are fetched, or are being fetched, and still needed.
        self._held_bytes = sum(map(fetched.size_of, self._ready))
        self._num_done = 0
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin to fetch.

        The threads are daemons: one that waits for a silent server does not keep the process.
        """
        self._fetched.reading.begin()
        with self._changed:
            self._note_need()
        for number in range(min(MAX_AT_ONCE, len(self._queue))):
            threading.Thread(target=self._work, name=f"srp-fetch-{number}", daemon=True).start()

    def stop(self) -> None:
        """Ask the threads to end, and end all waiting for them at once."""
        self._stop.set()
        with self._changed:
            self._fetched.reading.end_wait()
            self._changed.notify_all()
        if self._fetched.limit_bytes is not None:
            for number in self._needs.first:
                self._fetched.let_go(number)

    def wait(self, shards_B: Numbers) -> None:
        """Wait until the shards of a batch are here; see `Ahead.wait`."""
        needed = set(shards_B.tolist())
        with self._changed:
            self._changed.wait_for(
                lambda: needed <= self._ready or self._error or self._stop.is_set()
            )
            if self._stop.is_set():
                raise CancelledError
            if self._error and not needed <= self._ready:
                raise self._error

    def done(self) -> None:
        """Note that the oldest batch was used; see `Ahead.done`."""
        with self._changed:
            leaving = self._leaving.get(self._num_done, [])
            self._num_done += 1
            if self._fetched.limit_bytes is not None:
                for number in leaving:
                    self._fetched.let_go(number)
                    self._held_bytes -= self._fetched.size_of(number)
            self._note_need()
            self._changed.notify_all()

    def _note_need(self) -> None:
        """Note that the oldest batch is wanted now."""
        self._fetched.reading.take(self._first_bytes[self._num_done])
        self._note_wait()

    def _note_wait(self) -> None:
        """Note whether the batch that is wanted waits for a shard."""
        is_needed = self._coming and self._needs.first[next(iter(self._coming))] <= self._num_done
        if is_needed:
            self._fetched.reading.begin_wait()
        else:
            self._fetched.reading.end_wait()

    def _work(self) -> None:
        while (number := self._next()) is not None:
            try:
                self._fetched.fetch(number, self._stop)
            except BaseException as error:  # raised again where a batch needs the shard
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready.add(number)
                self._num_fetching -= 1
                del self._coming[number]
                if not self._stop.is_set():
                    self._note_wait()
                elif self._fetched.limit_bytes is not None:
                    self._fetched.let_go(number)
                self._changed.notify_all()

    def _next(self) -> int | None:
        """Take the next shard as soon as it may be fetched; None at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stop.is_set() or self._error or not self._queue or self._may_fetch()
            )
            if self._stop.is_set() or self._error or not self._queue:
                return None
            number = self._queue.popleft()
            self._held_bytes += self._fetched.size_of(number)
            self._num_fetching += 1
            return number

    def _may_fetch(self) -> bool:
        number, limit = self._queue[0], self._fetched.limit_bytes
        if self._needs.first[number] <= self._num_done:  # the reader waits for it
            return True
        held = self._held_bytes + self._fetched.size_of(number)
        has_room = limit is None or held <= limit
        return has_room and self._num_fetching < self._fetched.num_at_once()
