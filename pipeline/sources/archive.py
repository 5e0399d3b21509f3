"""Read a .tgz from start to end as untrusted input; nothing is extracted.

tarfile trusts headers: it allocates a name of any length, fills a sparse file with zeros, seeks
back where a size is negative, and takes a damaged header for the end of the archive.
"""

import io
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from isal import igzip
from isal.igzip_lib import IsalError

from pipeline.common.atomic_io import named_errors
from pipeline.common.errors import SourceError
from pipeline.common.progress import Progress
from pipeline.sources.store import RemoteArchive, opened_archive

# Enough for names of 4 KiB and a few attributes; tarfile parses such a header in quadratic time.
MAX_HEADER_BYTES = 1 << 16
# Images are compressed already. A .tgz of many small ones, a header block each, may be 10 times
# smaller than its content; a bomb is 1000 times smaller or more.
MAX_RATIO = 100
STAGE = "reading the archive"
# What the readers of a tar and of its compressions raise for damaged ones.
_DAMAGES: tuple[type[Exception], ...] = (
    tarfile.TarError, EOFError, IsalError, lzma.LZMAError, OSError,  # type: ignore[assignment] # isal's stub calls a class a value
)  # fmt: skip
_GZIP = b"\x1f\x8b"
_BUFFER_BYTES = 1 << 20  # read and inflated at once; tarfile asks for a block at a time
MAX_SMALL_BYTES = 1 << 30  # content that an archive of any size may have
_LONG = frozenset(
    (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )
)

Member = tuple[tarfile.TarFile, tarfile.TarInfo, tuple[str, ...]]
"""The open archive, one member, and the parts of its path below the folder that holds train/."""


def read_members(
    archive: Path | RemoteArchive, *, splits: tuple[str, ...], progress: Progress
) -> Iterator[Member]:
    """Yield the folders, files and inner links of an archive, up to its last byte.

    Args:
        archive: File to read, or one at an address.
        splits: Folders that may be at the top level, without a root folder.
        progress: Reports the archive's bytes that were read.

    Iterating and reading the members raise what `one_line` turns into a SourceError; a system
    error names the archive.
    """
    total = archive.stat().st_size if isinstance(archive, Path) else archive.num_bytes
    limit = MAX_SMALL_BYTES + MAX_RATIO * total
    last = -1
    with (
        _opened(archive) as raw,
        _Archive.open(fileobj=raw, mode="r:*", tarinfo=_Header) as tar,
    ):
        for member in tar:
            tar.members.clear()  # type: ignore[attr-defined] # it would keep every header
            progress.update(STAGE, raw.tell(), total)
            if member.size < 0 or member.offset <= last:
                raise tarfile.ReadError(f"a size below 0 at offset {member.offset}")
            parts = _safe_parts(member, splits)
            _check_length(member.offset_data + member.size, limit)
            last = member.offset
            yield tar, member, parts
        _read_to_end(tar, limit)
    progress.update(STAGE, total, total)


def _opened(archive: Path | RemoteArchive) -> AbstractContextManager[io.BufferedReader]:
    if isinstance(archive, Path):
        return io.BufferedReader(_NamedFile(archive), _BUFFER_BYTES)
    return opened_archive(archive, _BUFFER_BYTES)


class _Hostile(Exception):  # noqa: N818 - never leaves this file
    """A member that no archive of images needs."""


class _NamedFile(io.FileIO):
    """A file whose read errors name it, which the system's do not."""

    def readinto(self, buffer: Any) -> int:
        with named_errors(Path(str(self.name))):
            return super().readinto(buffer)


class _Archive(tarfile.TarFile):
    """An archive whose gzip is decompressed by ISA-L, in two thirds of zlib's time."""

    @classmethod
    def gzopen(  # type: ignore[override] # only for reading
        cls, name: str | None, mode: Literal["r"], fileobj: io.BufferedReader, **options: Any
    ) -> tarfile.TarFile:
        """Open a gzip; any other file is left to the next compression that tarfile tries."""
        if not fileobj.peek(2).startswith(_GZIP):
            raise tarfile.ReadError("not a gzip file")
        gzip = igzip.IGzipFile(fileobj=fileobj)  # type: ignore[no-untyped-call] # isal's own
        return cls.taropen(name, mode, io.BufferedReader(gzip, _BUFFER_BYTES), **options)


class _Header(tarfile.TarInfo):
    def _proc_gnusparse_10(self, *_: object) -> None:
        """Refuse the one form of sparse file whose map has no end but the archive's."""
        raise _Hostile("a sparse file")

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a block; refuse it before tarfile reads the many more that it may ask for."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _LONG and not 0 <= header.size <= MAX_HEADER_BYTES:
            raise _Hostile(f"a header of {header.size} bytes, more than {MAX_HEADER_BYTES}")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise _Hostile(f"the sparse file {header.name!r}")
        return header


@contextmanager
def one_line(archive: Path | RemoteArchive) -> Iterator[None]:
    """Turn whatever a damaged or hostile archive makes tarfile raise into its reason.

    Raises:
        SourceError: With that reason.
    """
    try:
        yield
    except _Hostile as error:
        raise SourceError(
            "an archive must hold folders, plain files and links, inside it and no larger than "
            f"images need; got {error} in {archive}. Do not trust this archive."
        ) from error
    except _DAMAGES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not the archive's
        raise _damaged(archive, error) from error
    except (ValueError, RecursionError, OverflowError) as error:  # tarfile, parsing nonsense
        raise _damaged(archive, error) from error


def _damaged(archive: Path | RemoteArchive, error: Exception) -> SourceError:
    reason = str(error).split("\n")[0].rstrip(":")  # tarfile adds a line for each compression
    return SourceError(
        f"an archive must be a complete .tgz; got {type(error).__name__}: {reason} in {archive}. "
        "Download it again."
    )


def _check_length(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise _Hostile(f"{num_bytes} bytes when unpacked, more than {limit},")


def _read_to_end(tar: tarfile.TarFile, limit: int) -> None:
    """Look for the end, and read what follows it.

    tarfile takes a damaged header for the end, and checks no digest of gzip's.
    """
    file = tar.fileobj
    if file is None:
        return
    file.seek(tar.offset)
    if any(file.read(tarfile.BLOCKSIZE)) or file.tell() == tar.offset:
        raise tarfile.ReadError(f"no end of the archive at offset {tar.offset}")
    while file.read(1 << 20):
        _check_length(file.tell(), limit)


def _safe_parts(member: tarfile.TarInfo, splits: tuple[str, ...]) -> tuple[str, ...]:
    """Give a member's path below the folder that holds the splits."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise _Hostile(f"a path that leaves it, {member.name!r},")
    if member.issym() or member.islnk():
        folder = path.parent if member.issym() else PurePosixPath()
        if _leaves(folder / member.linkname):
            raise _Hostile(f"a link that leaves it, {member.name!r} to {member.linkname!r},")
    elif member.issparse():
        raise _Hostile(f"the sparse file {member.name!r}")
    elif not member.isfile() and not member.isdir():
        raise _Hostile(f"the device or pipe {member.name!r}")
    has_root = path.parts[:1] and path.parts[0] not in splits
    return path.parts[1:] if has_root else path.parts


def _leaves(path: PurePosixPath) -> bool:
    """Whether a path is absolute or, read part by part, climbs out of its root."""
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or path.is_absolute():
            return True
    return False
