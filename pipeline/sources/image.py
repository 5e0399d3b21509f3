"""One image of a source, not yet decoded."""

import errno
import os
from dataclasses import dataclass

MAX_IMAGE_BYTES = 1 << 30  # more than any image of --max-pixels should have; a sparse file has more


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of the source.

    Attributes:
        path: Relative to the source's root, with `/`: `train/CLASS/NAME.JPEG`. Bytes that are no
            UTF-8 are spelt out, backslash and all.
        split: `train` or `val`.
        class_name: Its class folder.
        size: Of the image's bytes.
        file: Local file that holds the bytes.
        offset: Where in that file they begin; None if they are all of it.
    """

    path: str
    split: str
    class_name: str
    size: int
    file: str
    offset: int | None

    def read(self) -> bytes:
        """Read the image's bytes, not yet decoded.

        Raises:
            OSError: If they cannot be read, are too many, or not as many as were listed.
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
    """Open a file without waiting, should it be a pipe by now."""
    return os.open(path, flags | os.O_NONBLOCK)
