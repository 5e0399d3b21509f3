"""Find, check and list the source images: a folder of class folders, or a .tgz of one."""

import lzma
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.durable import named_errors
from pipeline.errors import SourceError
from pipeline.plan import SourceImage

SPLITS = ("train", "val")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a source holds.

    Attributes:
        classes: Class folders, sorted; a label is an index into them.
        images: By split, in no particular order.
        passed_over: Files that are not images by their names, and so are not counted.
    """

    classes: tuple[str, ...]
    images: dict[str, tuple[SourceImage, ...]]
    passed_over: tuple[str, ...]


def open_source(source: Path, *, scratch: Path, on_progress: Progress) -> Source:
    """List a source's images.

    Args:
        source: Folder with `train/` and `val/` class folders, or a .tgz of one.
        scratch: File that an archive's images are copied to, one behind the other. The
            archive's own paths never reach the file system.
        on_progress: Told of the archive's bytes as they are read.

    Raises:
        SourceError: If the source is missing, damaged, hostile or laid out otherwise.
    """
    require_source(source)
    if source.is_dir():
        found, classes, passed_over = _list_folder(source)
    else:
        found, classes, passed_over = _list_archive(source, scratch, on_progress)
    return _check(source, found, classes, passed_over)


def require_source(source: Path) -> None:
    """Check that there is a source before anything is written.

    Raises:
        SourceError: If there is none.
    """
    if not source.exists():
        raise SourceError(
            f"SOURCE must be a folder or a .tgz; got {source}, which does not exist. "
            "Check the path, or get a data set with: srp-data download imagenette2-320"
        )


def _list_folder(root: Path) -> tuple[list[SourceImage], set[tuple[str, str]], list[str]]:
    images, classes, passed_over = [], set(), []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name not in SPLITS or not entry.is_dir():
            passed_over.append(entry.name)
            continue
        for below in sorted(os.scandir(entry), key=lambda below: below.name):
            if not below.is_dir():
                passed_over.append(f"{entry.name}/{below.name}")
                continue
            classes.add((entry.name, _text(below.name)))
            for path in _files_below(Path(below.path)):
                relative = path.relative_to(root).as_posix()
                if path.suffix.lower() not in IMAGE_SUFFIXES or _is_device(path):
                    passed_over.append(relative)
                    continue
                images.append(
                    SourceImage(
                        path=_text(relative),
                        split=entry.name,
                        class_name=_text(below.name),
                        size=path.stat().st_size if path.exists() else 0,
                        file=str(path.absolute()),
                        offset=0,
                    )
                )
    return images, classes, passed_over


def _text(name: str) -> str:
    """Spell out the bytes of a name that are no UTF-8; JSON cannot hold them."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _files_below(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder):  # links to folders are not followed: no loops
        for name in names:
            yield Path(parent, name)


def _is_device(path: Path) -> bool:
    """Whether reading might never end; a broken link is no device and becomes a rejection."""
    return path.exists() and not path.is_file()


def _list_archive(
    archive: Path, scratch: Path, on_progress: Progress
) -> tuple[list[SourceImage], set[tuple[str, str]], list[str]]:
    images: list[SourceImage] = []
    classes: set[tuple[str, str]] = set()
    passed_over: list[str] = []
    try:
        with named_errors(scratch), archive.open("rb") as raw, scratch.open("wb") as out:
            for tar, member in _members(raw, archive.stat().st_size, on_progress):
                parts = _safe_parts(member, archive)
                in_split = bool(parts) and parts[0] in SPLITS
                if in_split and len(parts) >= (2 if member.isdir() else 3):
                    classes.add((parts[0], _text(parts[1])))
                if member.isdir():
                    continue
                image = _copy_image(tar, member, parts, out)
                if image is None:
                    passed_over.append(member.name)
                else:
                    images.append(image)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the archive's
        reason = str(error).split("\n")[0].rstrip(":")  # tarfile adds a line for each compression
        raise SourceError(
            f"an archive must be a whole .tgz; got {type(error).__name__}: {reason} in {archive}. "
            "Fetch it again."
        ) from error
    return images, classes, passed_over


def _members(
    raw: BinaryIO, total: int, on_progress: Progress
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Read an archive front to back, to its very end.

    tarfile takes a damaged header for the end, and its stream mode checks no digest of gzip's,
    so the end of both is looked for here.
    """
    with tarfile.open(fileobj=raw, mode="r:*") as tar:
        for member in tar:
            on_progress("reading the archive", raw.tell(), total)
            yield tar, member
        file = tar.fileobj
        if file is not None:
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)) or file.tell() == tar.offset:
                raise tarfile.ReadError(f"no end of the archive at offset {tar.offset}")
            while file.read(1 << 20):
                pass
    on_progress("reading the archive", total, total)


def _safe_parts(member: tarfile.TarInfo, archive: Path) -> tuple[str, ...]:
    """Give a member's path below the folder that holds train/ and val/."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise SourceError(
            f"paths in an archive must stay inside it; got {member.name!r} in {archive}. "
            "Do not trust this archive."
        )
    has_root = path.parts[:1] and path.parts[0] not in SPLITS
    return path.parts[1:] if has_root else path.parts


def _copy_image(
    tar: tarfile.TarFile, member: tarfile.TarInfo, parts: tuple[str, ...], out: BinaryIO
) -> SourceImage | None:
    """Append one member to the scratch file if it is an image by its place and name."""
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
    shutil.copyfileobj(file, out)
    return SourceImage(
        path=_text("/".join(parts)),
        split=parts[0],
        class_name=_text(parts[1]),
        size=member.size,
        file=out.name,
        offset=offset,
    )


def _check(
    source: Path,
    found: list[SourceImage],
    classes: set[tuple[str, str]],
    passed_over: list[str],
) -> Source:
    names = tuple(sorted({name for _, name in classes}))
    for split in SPLITS:
        missing = [name for name in names if (split, name) not in classes]
        if not names or len(missing) == len(names):
            raise SourceError(
                f"a source must hold {split}/CLASS/IMAGE; got no class folder in {split}/ of "
                f"{source}. Name the folder that holds train/ and val/."
            )
        if missing:
            raise SourceError(
                f"every class must be in train/ and in val/; got no {split}/{missing[0]} in "
                f"{source}. Add the folder, or remove the class from the other split."
            )
    twice = [path for path, count in Counter(image.path for image in found).items() if count > 1]
    if twice:
        raise SourceError(
            f"every image must be in an archive once; got {twice[0]} more than once in {source}. "
            "Pack it again from one folder."
        )
    filled = {(image.split, image.class_name) for image in found}
    for split, name in sorted(classes):
        if (split, name) not in filled:
            raise SourceError(
                f"every class folder must hold images; got 0 in {split}/{name} of {source}. "
                "Add images or remove the folder."
            )
    return Source(
        classes=names,
        images={split: tuple(image for image in found if image.split == split) for split in SPLITS},
        passed_over=tuple(passed_over),
    )
