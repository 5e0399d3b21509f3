"""One image of a source, not yet decoded."""

import errno
import os
from dataclasses import dataclass

from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import read_object

MAX_IMAGE_BYTES = 1 << 30  # more than an image of --max-pixels needs; a sparse file may have more


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of the source.

    Attributes:
        path: Path below the source's root, with `/`: `train/CLASS/NAME.JPEG`; escaped by
            `spelt_out`.
        split: `train` or `val`.
        class_name: Name of its class folder.
        size: Size of the encoded image, bytes.
        file: Local file that holds the bytes; with `store`, its name there.
        offset: Where in that file they begin; None if they are the whole file.
        store: Folder at an address that holds the file; None if it is on this machine.
    """

    path: str
    split: str
    class_name: str
    size: int
    file: str
    offset: int | None
    store: RemoteFolder | None = None

    @property
    def place(self) -> str:
        """Path or address of the file that holds the bytes."""
        return self.file if self.store is None else self.store.locate(self.file)

    def read(self) -> bytes:
        """Read the encoded image.

        Raises:
            OSError: If it cannot be read, is too large, or its size has changed.
            StoreError: If its store does not answer.
        """
        if self.size > MAX_IMAGE_BYTES:
            raise OSError(errno.EFBIG, f"{self.size} bytes are more than {MAX_IMAGE_BYTES}")
        data = self._load() if self.store is None else self._fetch(self.store)
        if len(data) != self.size:
            raise OSError(errno.ESTALE, "the file changed after it was listed")
        return data

    def _load(self) -> bytes:
        """Read the file here, and a byte more if it is longer than when it was listed."""
        with open(self.file, "rb", opener=_open_at_once) as file:
            if self.offset is not None:
                file.seek(self.offset)
            return file.read(self.size + (self.offset is None))

    def _fetch(self, store: RemoteFolder) -> bytes:
        try:
            return read_object(store, self.file)
        except FileNotFoundError as error:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without blocking, in case it has become a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
