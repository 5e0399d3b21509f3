"""Write a data set in Imagenette's layout: pictures in class folders, object boxes in boxes.csv."""

import csv
import io
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.common.atomic_io import named_errors, named_output, sync_folder, write_synced
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress

BOX_HEADER = ("path", "x0", "y0", "x1", "y1")
BOXES_NAME = "boxes.csv"

ObjectBox = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the picture's sides."""


class Picture(NamedTuple):
    """An encoded image, and the box of its object."""

    data: bytes
    box: ObjectBox


def write_pictures(
    out: Path,
    makers: Iterable[tuple[Path, Callable[[], Picture]]],
    *,
    aside: Path,
    total: int,
    workers: int,
    stage: str,
    progress: Progress,
) -> int:
    """Write pictures and `boxes.csv`; they appear in `out` once all are written.

    Args:
        out: Folder that they appear in; locked by the caller.
        makers: Path below `out`, such as `train/CLASS/NAME.JPEG`, and the function that makes the
            picture.
        aside: Folder below `out` that collects them; what a killed run left there is deleted.
        total: Number of pictures.
        workers: Threads.
        stage: Name of the work for `progress`.
        progress: Reports pictures written.

    Returns:
        The number of pictures.

    Raises:
        ConfigError: If `out` cannot be written, or an earlier run left complete pictures.
    """
    if (aside / BOXES_NAME).exists():  # written last
        raise ConfigError(
            f"an earlier run could not move its complete pictures from {aside} to {out}. "
            f"Move them there, or delete {aside}."
        )
    shutil.rmtree(aside, ignore_errors=True)
    with named_output(out, "OUT"):
        aside.mkdir(parents=True)
    try:
        with named_errors(aside):
            boxes = _write(
                aside, makers, total=total, workers=workers, stage=stage, progress=progress
            )
            write_synced(aside / BOXES_NAME, _to_csv(boxes).encode())
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _publish(aside, out)
    return len(boxes)


def _publish(aside: Path, out: Path) -> None:
    """Move the complete pictures to `out`; if that fails, they stay in `aside`.

    `out` itself is not renamed: it may be a mount point. `train/` comes last: without it, no
    program takes the folder for a data set.
    """
    try:
        for entry in sorted(aside.iterdir(), key=lambda entry: (entry.name == "train", entry.name)):
            entry.replace(out / entry.name)
        aside.rmdir()
        sync_folder(out)
    except OSError as error:
        raise ConfigError(
            f"cannot move the complete pictures to OUT: {error}. Move the content of {aside} to "
            f"{out} yourself."
        ) from error


def _to_csv(boxes: list[tuple[str, ObjectBox]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(BOX_HEADER)
    rows.writerows((path, *(f"{edge:.5f}" for edge in box)) for path, box in boxes)
    return text.getvalue()


def _write(
    folder: Path,
    makers: Iterable[tuple[Path, Callable[[], Picture]]],
    *,
    total: int,
    workers: int,
    stage: str,
    progress: Progress,
) -> list[tuple[str, ObjectBox]]:
    def write(maker: tuple[Path, Callable[[], Picture]]) -> tuple[str, ObjectBox]:
        path, make = maker
        picture = make()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_synced(folder / path, picture.data)
        return path.as_posix(), picture.box

    boxes = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for written in pool.map(write, makers):
                boxes.append(written)
                progress.update(stage, len(boxes), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return boxes
