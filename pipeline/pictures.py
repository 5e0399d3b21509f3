"""A new data set in Imagenette's layout: pictures in class folders, and where their objects lie."""

import csv
import io
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.durable import named_errors, sync_folder, write_synced
from pipeline.errors import ConfigError

BOX_HEADER = ("path", "x0", "y0", "x1", "y1")
BOXES_NAME = "boxes.csv"

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the picture's sides."""

Progress = Callable[[int, int], None]
"""Called with pictures written and pictures in all."""


class Picture(NamedTuple):
    """An encoded image, and the box of its object."""

    data: bytes
    box: Box


def write_pictures(
    out: Path,
    makers: Iterable[tuple[Path, Callable[[], Picture]]],
    *,
    total: int,
    workers: int,
    on_progress: Progress | None,
) -> int:
    """Write pictures, and `boxes.csv` beside them; all appear at once and complete, or none.

    Args:
        out: Folder to make; absent or empty.
        makers: Path below `out`, such as `train/CLASS/NAME.JPEG`, and what makes the picture.
        total: Pictures in all.
        workers: Threads.
        on_progress: Called after each one.

    Returns:
        The number of pictures.

    Raises:
        ConfigError: If `out` holds something or cannot be written.
    """
    out = out.absolute()
    check_absent(out)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left behind
    try:
        with named_errors(partial):
            boxes = _write(partial, makers, total=total, workers=workers, on_progress=on_progress)
            write_synced(partial / BOXES_NAME, _to_csv(boxes).encode())
        partial.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise ConfigError(f"OUT must be writable; got {error}. Choose another OUT.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(boxes)


def _to_csv(boxes: list[tuple[str, Box]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(BOX_HEADER)
    rows.writerows((path, *(f"{edge:.5f}" for edge in box)) for path, box in boxes)
    return text.getvalue()


def check_absent(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        ConfigError: If `out` is anything but absent or an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"OUT must be absent or an empty folder; got {out}, which exists. "
            "Choose another OUT or remove that one first."
        )


def _write(
    folder: Path,
    makers: Iterable[tuple[Path, Callable[[], Picture]]],
    *,
    total: int,
    workers: int,
    on_progress: Progress | None,
) -> list[tuple[str, Box]]:
    def write(maker: tuple[Path, Callable[[], Picture]]) -> tuple[str, Box]:
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
                if on_progress:
                    on_progress(len(boxes), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return boxes
