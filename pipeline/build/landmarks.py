"""What another machine must find, so that a shard that is built there is the same as here."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import SrpError
from pipeline.decode import open_decoder
from pipeline.format.spec import DataSpec
from pipeline.sources.image import SourceImage
from pipeline.write.place import StorePlace
from pipeline.write.worker import Task

_NUM_READ = 8  # images that are tried, should some be unreadable here too


class Landmarks(NamedTuple):
    """What is the same on every machine of a build; called there, it says what is not.

    Attributes:
        token: File in OUT that this build wrote.
        text: What is in it.
        image: An image of SOURCE; None if it has none that can be read.
        sha256: Digest of the image.
        spec: The spec, with the version of the decoder.
        version: Version of srp.
    """

    token: Path
    text: str
    image: SourceImage | None
    sha256: str
    spec: DataSpec
    version: str

    def __call__(self) -> str:
        """Say what differs on this machine; "" if nothing does."""
        try:
            if self.token.read_text(encoding="ascii") != self.text:
                return f"another {self.token.parent}"
            if self.image and hashlib.sha256(self.image.read()).hexdigest() != self.sha256:
                return f"another {self.image.file}"
        except OSError as error:
            return f"{error.strerror}: {error.filename or self.token}"
        if (found := version("srp")) != self.version:
            return f"srp {found}, not {self.version},"
        try:
            library = open_decoder(self.spec).library
        except SrpError as error:
            return str(error)
        wanted = self.spec.decoder_library
        return "" if library == wanted else f"{library}, not {wanted},"


@contextlib.contextmanager
def landmarks(tasks: Sequence[Task]) -> Iterator[Landmarks]:
    """Leave a token in OUT while tasks run, and read one of their images."""
    text = secrets.token_hex(8)
    place = tasks[0].place
    if isinstance(place, StorePlace):
        raise RuntimeError("builds on Ray write a folder")  # BuildConfig refuses an address
    token = place.records / f".token-{text}"  # parts may run beside each other
    image, sha256 = _readable([image for task in tasks for image in task.images[:1]])
    token.write_text(text, encoding="ascii")
    try:
        yield Landmarks(token, text, image, sha256, tasks[0].spec, version("srp"))
    finally:
        with contextlib.suppress(OSError):  # an earlier error matters more
            token.unlink()


def _readable(images: Sequence[SourceImage]) -> tuple[SourceImage | None, str]:
    for image in images[:_NUM_READ]:
        with contextlib.suppress(OSError):
            return image, hashlib.sha256(image.read()).hexdigest()
    return None, ""
