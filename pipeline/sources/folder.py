"""Find, check and list the source images: a folder of class folders, or a .tgz of one.

Either may be at an address.
"""

import os
import re
import shutil
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from pipeline.common.atomic_io import named_errors
from pipeline.common.errors import SourceError
from pipeline.common.progress import SILENT, Progress
from pipeline.remote.address import RemoteFolder
from pipeline.sources.archive import one_line, read_members
from pipeline.sources.image import MAX_IMAGE_BYTES, SourceImage
from pipeline.sources.store import (
    RemoteArchive,
    find_archive,
    is_archive_name,
    list_files,
    require_listable,
)

SPLITS = ("train", "val")
# The suffixes that Pillow registers for `decode.rules.FORMATS` (tested). A constant,
# so that equal sources give equal shards with every release of Pillow.
IMAGE_SUFFIXES = (
    ".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_ESCAPED = re.compile(r"\\\\|\\x([0-9a-f]{2})")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a source holds.

    Attributes:
        classes: Names of the class folders, sorted; a label is an index into them.
        images: Images by split, in any order.
        skipped: Paths of files that are not images in train/CLASS/ or val/CLASS/, and of links to
            folders that were listed before.
    """

    classes: tuple[str, ...]
    images: dict[str, tuple[SourceImage, ...]]
    skipped: tuple[str, ...]


class _Found(NamedTuple):
    """Images, (split, class) pairs and skipped paths, collected while listing."""

    images: list[SourceImage]
    classes: set[tuple[str, str]]
    skipped: list[str]


def open_source(
    source: Path | RemoteFolder, *, scratch: Path, progress: Progress = SILENT
) -> Source:
    """List a source's images.

    Args:
        source: Folder with `train/` and `val/` class folders, or a .tgz of one, or the address of
            either.
        scratch: File that an archive's images are appended to; paths inside the archive are never
            used as paths of files.
        progress: Reports the bytes read of an archive.

    Raises:
        SourceError: If the source is missing, damaged, hostile or has another layout.
        StoreError: If an address does not answer.
        OSError: If one of its folders cannot be listed.
    """
    require_source(source)
    if isinstance(source, RemoteFolder):
        if is_archive(source):
            return _check(source, _list_archive(find_archive(source), scratch, progress))
        return _check(source, _list_store(source))
    if source.is_dir():
        return _check(source, _list_folder(source))
    return _check(source, _list_archive(source, scratch, progress))


def is_archive(source: Path | RemoteFolder) -> bool:
    """Whether a source is one file."""
    if isinstance(source, RemoteFolder):
        return is_archive_name(source.address)
    return not source.is_dir()


def count_images(source: Path) -> dict[str, int]:
    """Count a source's images by split; nothing is kept of an archive.

    Raises:
        SourceError: If the source is missing, damaged, hostile or has another layout.
        OSError: If one of its folders cannot be listed.
    """
    listed = open_source(source, scratch=Path(os.devnull))
    return {split: len(images) for split, images in listed.images.items()}


def require_source(source: Path | RemoteFolder) -> None:
    """Check that a source exists, before anything is written; of an address, that it may.

    Raises:
        SourceError: If it does not.
    """
    if isinstance(source, RemoteFolder):
        require_listable(source)
    elif not source.exists():
        raise SourceError(
            f"SOURCE must be a folder or a .tgz; got {source}, which does not exist. "
            "Check the path, or download a data set: srp-data download imagenette2-320"
        )


def _list_folder(root: Path) -> _Found:
    found = _Found([], set(), [])
    splits = []
    for entry in _entries(root):
        if entry.name in SPLITS and os.path.isdir(entry):
            splits.append(entry)
        else:
            found.skipped.append(entry.name)
    above = {_identity(path) for path in (root, *root.resolve().parents, *splits)}
    for split in splits:
        for entry in _entries(split):
            if not os.path.isdir(entry) or _identity(entry) in above:
                found.skipped.append(f"{split.name}/{entry.name}")
                continue
            found.classes.add((split.name, spelt_out(entry.name)))
            for path in _files_below(entry, found, root, seen=set(above)):
                _take_file(path, found, root)
    return found


def _entries(folder: Path) -> list[Path]:
    """List a folder by name, links last, so that a folder is listed under its own path."""
    with os.scandir(folder) as entries:
        in_order = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    return [folder / entry.name for entry in in_order]


def _identity(folder: Path) -> tuple[int, int]:
    """Identify a folder, whichever link leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _files_below(
    folder: Path, found: _Found, root: Path, *, seen: set[tuple[int, int]]
) -> Iterator[Path]:
    """Walk a class folder and the folders that it links to, each once, so that every loop ends.

    Args:
        folder: Class folder.
        found: Collects links to folders that were walked before.
        root: Folder that paths are relative to.
        seen: Folders that were walked before, or that contain this one.
    """
    waiting = [folder]
    while waiting:
        inner = waiting.pop()
        if _identity(inner) in seen:
            found.skipped.append(inner.relative_to(root).as_posix())
            continue
        seen.add(_identity(inner))
        folders = []
        for entry in _entries(inner):
            if os.path.isdir(entry):
                folders.append(entry)
            else:
                yield entry
        waiting += reversed(folders)


def _take_file(path: Path, found: _Found, root: Path) -> None:
    """Collect a file as an image if its suffix says so, else as skipped.

    A missing file, such as behind a broken link, is collected too: reading it gives the reason.
    """
    relative = path.relative_to(root)
    try:
        status = path.stat()
    except OSError:
        status = None
    is_device = status is not None and not stat.S_ISREG(status.st_mode)  # may never end
    if path.suffix.lower() not in IMAGE_SUFFIXES or is_device:
        found.skipped.append(relative.as_posix())
        return
    found.images.append(
        SourceImage(
            path=spelt_out(relative.as_posix()),
            split=relative.parts[0],
            class_name=spelt_out(relative.parts[1]),
            size=status.st_size if status else 0,
            file=str(path.absolute()),
            offset=None,
        )
    )


def _list_store(source: RemoteFolder) -> _Found:
    """List a folder at an address; a class folder is one that holds files."""
    found = _Found([], set(), [])
    for parts, num_bytes in list_files(source):
        name = "/".join(parts)
        is_in_class = len(parts) >= 3 and parts[0] in SPLITS
        if is_in_class:
            found.classes.add((parts[0], spelt_out(parts[1])))
        if not is_in_class or PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES:
            found.skipped.append(name)
            continue
        image = SourceImage(
            path=spelt_out(name),
            split=parts[0],
            class_name=spelt_out(parts[1]),
            size=num_bytes,
            file=name,
            offset=None,
            store=source,
        )
        found.images.append(image)
    return found


def spelt_out(name: str) -> str:
    r"""Escape the bytes of a name that are not UTF-8, as `\xff`, since JSON cannot hold them.

    A backslash becomes two, so that no two names are escaped alike.
    """
    doubled = name.replace("\\", "\\\\")
    return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_listed(name: str) -> str:
    """Give the name that `spelt_out` escaped, as the system lists it."""

    def character(found: re.Match[str]) -> str:
        byte: str = found[1]
        return bytes.fromhex(byte).decode("utf-8", "surrogateescape") if byte else "\\"

    return _ESCAPED.sub(character, name)


def _list_archive(archive: Path | RemoteArchive, scratch: Path, progress: Progress) -> _Found:
    found = _Found([], set(), [])
    members = read_members(archive, splits=SPLITS, progress=progress)
    with one_line(archive), named_errors(scratch), scratch.open("wb") as out:
        for tar, member, parts in members:
            in_split = bool(parts) and parts[0] in SPLITS
            if in_split and len(parts) >= (2 if member.isdir() else 3):
                found.classes.add((parts[0], spelt_out(parts[1])))
            if member.isdir():
                continue
            image = _copy_image(tar, member, parts, out)
            if image is None:
                found.skipped.append(member.name)
            else:
                found.images.append(image)
    return found


def _copy_image(
    tar: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...], out: BinaryIO
) -> SourceImage | None:
    """Append a member to the scratch file if its path and suffix are those of an image."""
    is_image = (
        member.isfile()
        and len(parts) >= 3
        and parts[0] in SPLITS
        and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES
    )
    file = tar.extractfile(member) if is_image else None
    if file is None:
        return None
    offset = out.tell()
    if member.size <= MAX_IMAGE_BYTES:  # a larger one is rejected when it is read
        shutil.copyfileobj(file, out)
    return SourceImage(
        path=spelt_out("/".join(parts)),
        split=parts[0],
        class_name=spelt_out(parts[1]),
        size=member.size,
        file=out.name,
        offset=offset,
    )


def _check(source: Path | RemoteFolder, found: _Found) -> Source:
    images, classes = found.images, found.classes
    names = tuple(sorted({name for _, name in classes}))
    for split in SPLITS:
        missing = [name for name in names if (split, name) not in classes]
        if not names or len(missing) == len(names):
            raise SourceError(
                f"a source must hold {split}/CLASS/IMAGE; got no class folder in {split}/ of "
                f"{source}. Give the folder that holds train/ and val/."
            )
        if missing:
            raise SourceError(
                f"every class must be in train/ and in val/; got no {split}/{missing[0]} in "
                f"{source}. Add the folder, or remove the class from the other split."
            )
    twice = [path for path, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        raise SourceError(
            f"an archive must hold every image once; got {twice[0]} more than once in {source}. "
            "Pack it again from one folder."
        )
    filled = {(image.split, image.class_name) for image in images}
    for split, name in sorted(classes):
        if (split, name) not in filled:
            raise SourceError(
                f"every class folder must hold images; got 0 in {split}/{name} of {source}. "
                "Add images or remove the folder."
            )
    return Source(
        classes=names,
        images={
            split: tuple(image for image in images if image.split == split) for split in SPLITS
        },
        skipped=tuple(found.skipped),
    )
