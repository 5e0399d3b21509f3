"""A new data set in Imagenette's layout: pictures in class folders, and where their objects lie."""

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
    """Write pictures, and `boxes.csv` beside them; they appear once all are there.

    Args:
        out: Folder that they appear in; to be held by the caller.
        makers: Path below `out`, such as `train/CLASS/NAME.JPEG`, and what makes the picture.
        aside: Folder below `out` that they gather in; it may hold what a killed run left behind.
        total: Pictures in all.
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
            f"complete pictures of an earlier run must not be lost; got some in {aside}, "
            f"which could not be moved. Move what is in it to {out} yourself, or delete it."
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
    """Move what is complete to its place; what cannot be moved is kept.

    Nothing is renamed over `out` itself, which may be a mount point. `train/` comes last: where it
    is missing, no program takes the folder for a data set.
    """
    try:
        for entry in sorted(aside.iterdir(), key=lambda entry: (entry.name == "train", entry.name)):
            entry.replace(out / entry.name)
        aside.rmdir()
        sync_folder(out)
    except OSError as error:
        raise ConfigError(
            f"the pictures must be moved to OUT; got {error}. They are complete: move what is in "
            f"{aside} to {out} yourself."
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
