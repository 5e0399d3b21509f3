"""Find the image files that a command names: files, folders, patterns, and `-` for a list."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.common.errors import SourceError
from pipeline.sources.folder import IMAGE_SUFFIXES

LIST = "-"  # stands for the list of files on standard input


@dataclass(frozen=True, kw_only=True)
class FoundPhotos:
    """Image files that are named, not yet opened.

    Attributes:
        files: Each file when it is needed, in the order of the places; names are not collected.
        num_files: How many there are; None while a list is still being read.
    """

    files: Iterator[Path]
    num_files: int | None


def find_photos(places: Sequence[str], listed: BinaryIO) -> FoundPhotos:
    """Find the image files at some places.

    A file is taken whatever its name is. In a folder, and in those below it, the files with the
    suffix of an image are taken, sorted by name; links to folders are not followed.

    Args:
        places: Files, folders, patterns such as `photos/**/*.jpg`, or `-`.
        listed: Standard input: the path of a file on each line. Read only for `-`.

    Raises:
        SourceError: If there is nothing at a place, or no image in a folder.
        OSError: If a folder cannot be listed.
    """
    counts = [_count(place) for place in places if place != LIST]
    return FoundPhotos(
        files=_files(places, listed), num_files=None if LIST in places else sum(counts)
    )


def _count(place: str) -> int:
    count = sum(1 for _ in _files_at(place))
    if count:
        return count
    if os.path.isdir(place):
        raise SourceError(
            f"a folder of images must hold some; got none in {place}. Images end in "
            f"{' '.join(IMAGE_SUFFIXES)}; name a file of another suffix by itself."
        )
    raise SourceError(
        f"IMAGE must be a file, a folder or a pattern such as 'photos/*.jpg'; got {place}, which "
        "does not exist. Check the path, or give a list of paths on standard input: -"
    )


def _files(places: Sequence[str], listed: BinaryIO) -> Iterator[Path]:
    for place in places:
        yield from _listed(listed) if place == LIST else _files_at(place)


def _listed(listed: BinaryIO) -> Iterator[Path]:
    lines = (line.rstrip(b"\r\n") for line in listed)
    yield from (Path(os.fsdecode(line)) for line in lines if line)


def _files_at(place: str) -> Iterator[Path]:
    found: Iterable[str] = [place]
    if not os.path.lexists(place):
        found = sorted(glob.iglob(place, recursive=True)) if glob.has_magic(place) else []
    for path in found:
        if os.path.isdir(path):
            yield from _files_below(path)
        else:
            yield Path(path)


def _files_below(folder: str) -> Iterator[Path]:
    for inner, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        images = (name for name in sorted(names) if name.lower().endswith(IMAGE_SUFFIXES))
        yield from (Path(inner, name) for name in images)


def _raise(error: OSError) -> None:
    raise error
