"""What another machine must find, so that a shard that is built there is the same as here."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NamedTuple

from pipeline.common.errors import SrpError, StoreError
from pipeline.decode import open_decoder
from pipeline.format.spec import DataSpec
from pipeline.sources.image import SourceImage
from pipeline.write.place import FolderPlace, StorePlace
from pipeline.write.worker import Task

_NUM_READ = 8  # images that are tried, should some be unreadable here too


class Landmarks(NamedTuple):
    """What is the same on every machine of a build; called there, it says what is not.

    Attributes:
        place: Where shards go.
        token: Name of a file in OUT that this build wrote, among its records.
        text: What is in it.
        image: An image of SOURCE; None if it has none that can be read.
        sha256: Digest of the image.
        spec: The spec, with the version of the decoder.
        version: Version of srp.
    """

    place: FolderPlace | StorePlace
    token: str
    text: str
    image: SourceImage | None
    sha256: str
    spec: DataSpec
    version: str

    def __call__(self) -> str:
        """Say what differs on this machine; "" if nothing does."""
        try:
            with self.place.opened():  # where shards are written first
                pass
            return self._of_out() or self._of_source() or self._of_programs()
        except SrpError as error:
            return str(error).partition(". ")[0]  # without its fix, which is for this machine alone

    def _of_out(self) -> str:
        where = self.place.locate(self.token)
        try:
            if self.place.read_token(self.token) != self.text:
                return f"another {where.rpartition('/')[0]}"
        except OSError as error:
            return _missing(where, error)
        return ""

    def _of_source(self) -> str:
        if self.image is None:
            return ""
        where = self.image.place
        try:
            if hashlib.sha256(self.image.read()).hexdigest() != self.sha256:
                return f"another {where}"
        except OSError as error:
            return _missing(where, error)
        return ""

    def _of_programs(self) -> str:
        if (found := version("srp")) != self.version:
            return f"srp {found}, not {self.version},"
        library, wanted = open_decoder(self.spec).library, self.spec.decoder_library
        return "" if library == wanted else f"{library}, not {wanted},"


def _missing(where: str, error: OSError) -> str:
    """Name what is not there; a store's error has neither number nor file."""
    return f"{error.strerror or os.strerror(errno.ENOENT)}: {where}"


@contextlib.contextmanager
def landmarks(tasks: Sequence[Task]) -> Iterator[Landmarks]:
    """Leave a token in OUT while tasks run, and read one of their images."""
    text = secrets.token_hex(8)
    place = tasks[0].place
    token = f".token-{text}"  # parts may run beside each other
    image, sha256 = _readable([image for task in tasks for image in task.images[:1]])
    place.write_token(token, text)
    try:
        yield Landmarks(place, token, text, image, sha256, tasks[0].spec, version("srp"))
    finally:
        with contextlib.suppress(OSError, StoreError):  # an earlier error matters more
            place.remove_token(token)


def _readable(images: Sequence[SourceImage]) -> tuple[SourceImage | None, str]:
    for image in images[:_NUM_READ]:
        with contextlib.suppress(OSError):
            return image, hashlib.sha256(image.read()).hexdigest()
    return None, ""
