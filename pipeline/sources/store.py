"""List a source at an address: a folder of class folders in a store, or a .tgz that is streamed.

Names in a store are as untrusted as those in an archive: `..` is a plain name there.
"""

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from pipeline.common.errors import SourceError
from pipeline.remote.address import WRITABLE_SCHEMES, RemoteFolder
from pipeline.remote.objects import length_of, list_objects
from pipeline.remote.remote_file import RemoteFile

ARCHIVE_SUFFIXES = (".tgz", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2")


class RemoteArchive(NamedTuple):
    """An archive at an address."""

    folder: RemoteFolder
    name: str
    num_bytes: int

    def __str__(self) -> str:
        """Give its address."""
        return self.folder.locate(self.name)


def is_archive_name(address: str) -> bool:
    """Whether an address is that of an archive; a store's folder is nothing that can be opened."""
    return address.lower().endswith(ARCHIVE_SUFFIXES)


def require_listable(source: RemoteFolder) -> None:
    """Check that an address may hold images, before anything is read.

    Raises:
        SourceError: If it is a folder of a web server, which gives no list.
    """
    if not is_archive_name(source.address) and source.scheme not in WRITABLE_SCHEMES:
        raise SourceError(
            f"SOURCE at {source.scheme} must be an archive; got {source}, and a web server lists "
            f"no folder. Name a file that ends in {', '.join(ARCHIVE_SUFFIXES)}, or a folder of "
            "this machine or of s3, gs or hf."
        )


def find_archive(source: RemoteFolder) -> RemoteArchive:
    """Look up an archive.

    Raises:
        SourceError: If there is none, or its length is not known.
        StoreError: If its store does not answer.
    """
    address, _, name = source.address.rpartition("/")
    folder = RemoteFolder(scheme=source.scheme, address=address)
    num_bytes = length_of(folder, name)
    if num_bytes is None:
        raise SourceError(
            f"SOURCE must be an archive of a known length; got none at {source}. Check the address."
        )
    return RemoteArchive(folder, name, num_bytes)


def list_files(source: RemoteFolder) -> Iterator[tuple[tuple[str, ...], int]]:
    """Give the parts of the path of each file below a folder, and its length, sorted by name.

    Raises:
        SourceError: If there is none, or a name is none that a folder could have.
        StoreError: If the folder cannot be listed.
    """
    found = list_objects(source)
    if not found:
        raise SourceError(
            f"SOURCE must hold train/CLASS/IMAGE and val/CLASS/IMAGE; got no file at {source}. "
            "Check the address and your access to it."
        )
    for name in sorted(found):
        parts = tuple(name.split("/"))
        if not {"", ".", ".."}.isdisjoint(parts) or not name.isprintable():
            raise SourceError(
                f"names in SOURCE must be those of plain files; got {name!r} at {source}. Do not "
                "trust this source, or rename the object."
            )
        yield parts, found[name]


@contextmanager
def opened_archive(archive: RemoteArchive, buffer_bytes: int) -> Iterator[io.BufferedReader]:
    """Read an archive from start to end; lost connections are resumed."""
    remote = RemoteFile(archive.folder, archive.name, num_bytes=archive.num_bytes)
    stream: Any = _Stream(remote)
    with closing(remote), io.BufferedReader(stream, buffer_bytes) as file:
        yield file


class _Stream(io.RawIOBase):
    """What tarfile reads: it asks where it is, and goes back only within the buffer."""

    def __init__(self, remote: RemoteFile) -> None:
        self._remote = remote
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (offset, whence) not in ((0, io.SEEK_CUR), (self._position, io.SEEK_SET)):
            raise io.UnsupportedOperation("a stream does not go back")
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._remote.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
