"""One loader's process: `python -P -m pipeline.bench.loaders.child`.

It takes a `Task` on stdin and answers with an `Answer`. Every turn has a process of its own, so no
loader profits from what another one left warm, and none shares threads, allocators or versions of
packages.
"""

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pipeline.bench.loaders.protocol import (
    Answer,
    Batch,
    Epoch,
    Images,
    LoaderModule,
    Task,
    digests,
    task_from_json,
)


def main() -> None:
    """Do one task; what libraries print goes to stderr."""
    answers = os.dup(1)
    os.dup2(2, 1)
    answer = _answer(task_from_json(sys.stdin.readline()))
    os.write(answers, f"{json.dumps(asdict(answer))}\n".encode())
    os.close(answers)


def _answer(task: Task) -> Answer:
    start = time.perf_counter()
    try:
        loader: LoaderModule = import_module(f"pipeline.bench.loaders.contenders.{task.loader}")
    except ImportError as error:  # a library, or a library of a library
        return Answer(problem=str(error), missing=error.name or task.package)
    import_s = time.perf_counter() - start
    images = Images(Path(task.images), task.boxes)
    if task.action == "build":
        return _build(loader, task, images)
    return _turn(loader, task, images, import_s)


def _build(loader: LoaderModule, task: Task, images: Images) -> Answer:
    out = Path(task.out)
    out.mkdir()
    start = time.perf_counter()
    loader.build(task.layout, images, out)
    return Answer(
        build_s=time.perf_counter() - start,
        num_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        version=_version(task.package),
    )


def _version(package: str) -> str:
    try:
        return version(package) if package else ""
    except PackageNotFoundError:
        return ""


def _turn(loader: LoaderModule, task: Task, images: Images, import_s: float) -> Answer:
    """Warm up for one epoch, measure whole epochs, then check one more."""
    start = time.perf_counter()
    epoch = loader.open_loader(task, images)
    batches = iter(epoch())
    num_first = len(next(batches).labels)
    first_batch_s = time.perf_counter() - start
    num_images = num_first + _drain(batches)
    if num_images != len(images):
        return Answer(problem=f"an epoch had {num_images} images, not {len(images)}")
    rate, cpu_s = _measure(epoch, task.seconds)
    return Answer(
        problem=None if task.mode == "limit" else _difference(epoch, task),
        version=_version(task.package),
        rate=rate,
        cpu_s=cpu_s,
        first_batch_s=first_batch_s,
        import_s=import_s,
    )


def _drain(batches: Iterable[Batch]) -> int:
    """Take batches as a training loop that has nothing else to do."""
    return sum(len(batch.labels) for batch in batches)


def _measure(epoch: Epoch, seconds: float) -> tuple[float, float | None]:
    """Give samples per second, and seconds of all cores per sample."""
    num_images = 0
    cpu_before = _cpu_seconds()
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        num_images += _drain(epoch())
    cpu_after = _cpu_seconds()
    if cpu_before is None or cpu_after is None:
        return num_images / spent, None
    return num_images / spent, (cpu_after - cpu_before) / num_images


def _difference(epoch: Epoch, task: Task) -> str | None:
    """Compare an epoch's output, image by image, with what the bench expects."""
    expected = np.load(Path(task.images) / f"expected-{task.mode}.npy")
    found = digests(epoch())
    if found.shape != expected.shape:
        return f"wrong output: {len(found)} images, not {len(expected)}"
    known = {tuple(row) for row in expected.tolist()}
    num_wrong = sum(tuple(row) not in known for row in found.tolist())
    if num_wrong or (found != expected).any():
        return f"wrong pixels: {num_wrong} of {len(found)} images are not those that were given"
    return None


def _cpu_seconds() -> float | None:
    """Add up the time of this process and of all below it, ended ones included."""
    times: dict[int, int] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name before the last bracket may hold spaces.
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        times[number] = sum(map(int, fields[11:15]))
    if not times:  # not Linux
        return None
    tree = {os.getpid()}
    while below := {number for number in times if parents[number] in tree} - tree:
        tree |= below
    return sum(times[number] for number in tree) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
