"""One image of a source, not yet decoded."""

import errno
import os
from dataclasses import dataclass

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
        file: Local file that holds the bytes.
        offset: Where in that file they begin; None if they are the whole file.
    """

    path: str
    split: str
    class_name: str
    size: int
    file: str
    offset: int | None

    def read(self) -> bytes:
        """Read the encoded image.

        Raises:
            OSError: If it cannot be read, is too large, or its size has changed.
        """
        if self.size > MAX_IMAGE_BYTES:
            raise OSError(errno.EFBIG, f"{self.size} bytes are more than {MAX_IMAGE_BYTES}")
        with open(self.file, "rb", opener=_open_at_once) as file:
            if self.offset is not None:
                file.seek(self.offset)
            data = file.read(self.size)
            is_longer = self.offset is None and bool(file.read(1))
        if len(data) != self.size or is_longer:
            raise OSError(errno.ESTALE, "the file changed after it was listed")
        return data


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without blocking, in case it has become a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
