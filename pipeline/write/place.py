"""Where a worker leaves a finished shard and its record: in a folder, or at an address."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import read_object, remove_objects, upload_file, write_object
from pipeline.write.resume import STATE_NAME, Finished, encode_record, save_record
from pipeline.write.scratch import open_scratch


class FolderPlace(NamedTuple):
    """A folder in which shards are written, `out`, and one for their records."""

    out: Path
    records: Path

    @contextlib.contextmanager
    def opened(self) -> Iterator["FolderPlace"]:
        """Give the place itself: shards are written where they stay."""
        yield self

    def keep(self, finished: Finished) -> None:
        """Record a finished shard for a later run."""
        save_record(self.records, finished)

    def locate(self, token: str) -> str:
        """Give the path of a token, which lies among the records."""
        return str(self.records / token)

    def write_token(self, token: str, text: str) -> None:
        """Leave a token."""
        (self.records / token).write_text(text, encoding="ascii")

    def read_token(self, token: str) -> str:
        """Read a token."""
        return (self.records / token).read_text(encoding="ascii")

    def remove_token(self, token: str) -> None:
        """Remove a token."""
        (self.records / token).unlink()


class OpenedStore(NamedTuple):
    """A folder at an address, and one on this machine in which a shard is written first, `out`."""

    folder: RemoteFolder
    fingerprint: str
    out: Path

    def keep(self, finished: Finished) -> None:
        """Send a finished shard under its final name, then its record, and remove it here.

        Raises:
            StoreError: If they cannot be sent.
        """
        shard = finished.shard
        path = self.out / shard.name
        record = f"{records_name(self.fingerprint)}/{shard.name}.json"
        try:
            upload_file(
                self.folder,
                shard.name,
                path,
                sha256=shard.sha256,
                beside={record: encode_record(finished)},
            )
        finally:
            path.unlink(missing_ok=True)


def records_name(fingerprint: str) -> str:
    """Give the name below OUT of the folder of a build's records."""
    return f"{STATE_NAME}/{fingerprint}"


class StorePlace(NamedTuple):
    """A folder at an address, as any machine reaches it.

    Attributes:
        folder: The address.
        fingerprint: Of the build.
        scratch: Folder of each machine in which a worker makes its own; None takes one among the
            user's caches there.
    """

    folder: RemoteFolder
    fingerprint: str
    scratch: Path | None

    @contextlib.contextmanager
    def opened(self) -> Iterator[OpenedStore]:
        """Make a folder on this machine for a shard that is on its way.

        Raises:
            ConfigError: If it cannot be made.
        """
        with open_scratch(self.scratch) as scratch:
            yield OpenedStore(self.folder, self.fingerprint, scratch)

    def locate(self, token: str) -> str:
        """Give the address of a token, which lies among the records."""
        return self.folder.locate(self._name(token))

    def write_token(self, token: str, text: str) -> None:
        """Leave a token."""
        write_object(self.folder, self._name(token), text.encode("ascii"))

    def read_token(self, token: str) -> str:
        """Read a token."""
        return read_object(self.folder, self._name(token)).decode("ascii")

    def remove_token(self, token: str) -> None:
        """Remove a token."""
        remove_objects(self.folder, [self._name(token)])

    def _name(self, token: str) -> str:
        return f"{records_name(self.fingerprint)}/{token}"
