"""Images that end the worker that reads them."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from pipeline.sources.image import SourceImage
from pipeline.write.resume import Finished
from pipeline.write.worker import Task, build_shard

POISON = b"POISON "


def poison(image: Path, how: str, *, once: Path | None = None) -> None:
    """Make an image end the worker that reads it; decoders stop before what is appended."""
    with image.open("ab") as file:
        file.write(POISON + json.dumps([how, str(once or "")]).encode())


read = SourceImage.read


def read_or_be_poisoned(image: SourceImage) -> bytes:
    data = read(image)
    _, found, order = data.rpartition(POISON)
    if found:
        how, marker = json.loads(order)
        if not (marker and os.path.exists(marker)):
            if marker:
                Path(marker).touch()
            ENDS[how]()
    return data


ENDS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(3600),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}


def write_poisoned(task: Task) -> Finished:
    """Run in the worker in place of `build_shard`."""
    with mock.patch.object(SourceImage, "read", read_or_be_poisoned):
        return build_shard(task)
