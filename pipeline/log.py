"""What happens, one JSON object a line, for machines: the option `--log FILE` of both programs.

Each line has `time` (UTC, ISO 8601), `pid` and `event`; the other fields are the event's own.
"""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STAGE_S = 10.0  # between two lines of one stage


class Log:
    """Appends to a file, or says nothing until it has one."""

    def __init__(self) -> None:
        """Begin without a file."""
        self._path: Path | None = None
        self._told: dict[str, tuple[float, int]] = {}

    def open(self, path: Path | None) -> None:
        """Append to a file from now on; None appends nowhere.

        Raises:
            OSError: If it cannot be written to.
        """
        self._path, self._told = None, {}
        if path is not None:
            path.open("a").close()
        self._path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append a line; each is written by itself, so that several processes may share a file."""
        if self._path is None:
            return
        head = {"time": datetime.now(UTC).isoformat(), "pid": os.getpid(), "event": event}
        with self._path.open("a") as file:
            file.write(json.dumps({**head, **fields}, default=str) + "\n")

    def begin(self) -> None:
        """Forget how far stages were: what is told from now on is of other work."""
        self._told.clear()

    def stage(self, stage: str, done: int, total: int) -> None:
        """Append how far a stage is: at its start, at its end, and every few seconds."""
        if self._path is None:
            return
        now, never = time.monotonic(), (-STAGE_S, -1)
        told, before = self._told.get(stage, never)
        if done < before:  # it begins again, such as an epoch of the next fold
            told, before = never
        if before >= total or (done < total and now - told < STAGE_S):
            return
        self._told[stage] = (now, done)
        self.write("stage", stage=stage, done=done, total=total)


LOG = Log()
