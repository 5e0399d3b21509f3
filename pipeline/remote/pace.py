"""How many parts of a store are fetched at once: as many as keep up with their reader.

A part is a shard, or a block of one. By Little's law the bytes under way are the rate at which they
are wanted times the time that a part takes from its request to its last byte. Both are measured.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

MAX_AT_ONCE = 16
START_AT_ONCE = 3  # before the first part has come and was used
RECENT = 16  # connections that the measure of a store is made from


def num_at_once(
    *, wanted_bytes_s: float, latency_s: float, s_per_byte: float, part_bytes: float, limit: int
) -> int:
    """Say how many parts to fetch at once, so that the reader does not wait.

    One more than the mean that Little's law gives: parts are taken in order, so one that is late
    holds up those after it.

    Args:
        wanted_bytes_s: Rate at which the reader takes bytes while it does not wait; may be
            infinite.
        latency_s: Time from a request to its first byte.
        s_per_byte: Time of each byte of one connection after that.
        part_bytes: Size of a part.
        limit: Largest number, at least 1.

    Source:
        Little, A Proof for the Queuing Formula L = lambda W, Operations Research 9(3), 1961.
    """
    part_s = latency_s + part_bytes * s_per_byte
    mean = wanted_bytes_s / part_bytes * part_s if part_s else 0.0
    return limit if mean >= limit else min(math.ceil(mean) + 1, limit)


class Link:
    """What this process has measured of its connections to one store.

    Safe to share among threads; another process that it is sent to measures for itself.

    Attributes:
        num_bytes: Bytes that all connections have brought so far.
    """

    def __init__(self) -> None:
        """Begin without a measurement."""
        self.num_bytes = 0
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Link"], tuple[()]]:
        return Link, ()

    @property
    def is_measured(self) -> bool:
        """Whether a connection has ended."""
        return bool(self._recent)

    @property
    def latency_s(self) -> float:
        """Median time from a request to its first bytes, of the connections that ended last."""
        return median(latency_s for latency_s, _, _ in self._recent.copy())

    @property
    def s_per_byte(self) -> float:
        """Mean time of a byte after the first ones, of the connections that ended last."""
        recent = self._recent.copy()
        return sum(seconds for _, _, seconds in recent) / sum(count for _, count, _ in recent)

    def note(self, *, latency_s: float, num_bytes: int, seconds: float) -> None:
        """Note a connection that has ended.

        Args:
            latency_s: Time from its request to its first bytes.
            num_bytes: Bytes that it has brought, at least 1.
            seconds: Time spent on waiting for all later ones.
        """
        with self._lock:
            self.num_bytes += num_bytes
            self._recent.append((latency_s, num_bytes, seconds))


class Reading:
    """What one reader takes, and how long it waits for it.

    Attributes:
        waited_s: Time spent on waiting so far, s; a wait that has not ended counts when it has.
    """

    def __init__(self) -> None:
        """Begin without a wait."""
        self.waited_s = 0.0
        self._waits_since_s: float | None = None
        self.begin()

    def begin(self) -> None:
        """Begin a pass, such as an epoch: what lies between passes is no work on what was taken."""
        self._began_s, self._waited_before_s, self._num_bytes = time.monotonic(), self.waited_s, 0

    def take(self, num_bytes: int) -> None:
        """Note that the reader goes on to its next bytes."""
        self._num_bytes += num_bytes

    def begin_wait(self) -> None:
        """Note that the reader waits, if it did not already."""
        if self._waits_since_s is None:
            self._waits_since_s = time.monotonic()

    def end_wait(self) -> None:
        """Note that the reader goes on, if it waited."""
        if self._waits_since_s is not None:
            self.waited_s += time.monotonic() - self._waits_since_s
            self._waits_since_s = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as waiting."""
        self.begin_wait()
        try:
            yield
        finally:
            self.end_wait()

    @property
    def wanted_bytes_s(self) -> float:
        """Rate at which bytes of this pass were taken while the reader did not wait."""
        busy_s = time.monotonic() - self._began_s - (self.waited_s - self._waited_before_s)
        if self._waits_since_s is not None:
            busy_s -= time.monotonic() - self._waits_since_s
        return self._num_bytes / busy_s if busy_s > 0 else math.inf

    def num_at_once(self, link: Link | None, *, part_bytes: float, limit: int) -> int:
        """Say how many parts of a store to fetch at once; see the function of this name.

        Args:
            link: What is measured of the store; None opens its files without a wait.
            part_bytes: Size of a part.
            limit: Largest number, at least 1.
        """
        if link is None:
            return 1
        if not link.is_measured or not self._num_bytes:
            return min(START_AT_ONCE, limit)
        return num_at_once(
            wanted_bytes_s=self.wanted_bytes_s, latency_s=link.latency_s,
            s_per_byte=link.s_per_byte, part_bytes=part_bytes, limit=limit,
        )  # fmt: skip
