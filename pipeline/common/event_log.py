"""Events as JSON Lines, for machines: the option `--log FILE` of both programs.

Each line has `time` (UTC, ISO 8601), `pid` and `event`; the other fields are the event's own.
"""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STAGE_S = 10.0  # between two lines of one stage


class Log:
    """Appends events to a file, if one is open."""

    def __init__(self) -> None:
        """Start without a file."""
        self._path: Path | None = None
        self._warn: Callable[[str], None] = lambda _: None
        self._written: dict[str, tuple[float, int]] = {}

    def open(self, path: Path | None, *, warn: Callable[[str], None]) -> None:
        """Append to a file from now on; None appends nowhere.

        Args:
            path: The file.
            warn: Called once if a line cannot be written; the work continues without a log.

        Raises:
            OSError: If it cannot be opened.
        """
        self._path, self._warn, self._written = None, warn, {}
        if path is not None:
            path.open("a").close()
        self._path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append a line. Each is one write, so that several processes can share a file."""
        if self._path is None:
            return
        head = {"time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "event": event}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({**head, **fields}, default=str) + "\n")
        except OSError as error:
            path, self._path = self._path, None  # this line may be cut; no other follows it
            self._warn(
                f"the log ends here: {error.strerror} at {path}; the work continues without a log"
            )

    def begin(self) -> None:
        """Forget the stages: other work starts."""
        self._written.clear()

    def stage(self, stage: str, done: int, total: int) -> None:
        """Append a stage's progress: at its start, at its end, and every few seconds."""
        if self._path is None:
            return
        now, never = time.monotonic(), (-STAGE_S, -1)
        last, before = self._written.get(stage, never)
        if done < before:  # it starts again, for example in the next fold
            last, before = never
        if before >= total or (done < total and now - last < STAGE_S):
            return
        self._written[stage] = (now, done)
        self.write("stage", stage=stage, done=done, total=total)


LOG = Log()
