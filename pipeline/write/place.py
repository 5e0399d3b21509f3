"""Where a worker leaves a finished shard and its record: in a folder, or at an address."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.format.index import ShardEntry
from pipeline.format.sample import PlannedShard
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import upload_file, write_object
from pipeline.write.resume import STATE_NAME, Finished, encode_record, save_record
from pipeline.write.shard_writer import EncodedSample, write_shard


class FolderPlace(NamedTuple):
    """A folder for shards, and one for their records."""

    out: Path
    records: Path

    def write(
        self,
        spec: PlannedShard,
        samples: Iterable[EncodedSample],
        *,
        suffixes: Sequence[str],
        num_bytes: int,
    ) -> ShardEntry:
        """Write a shard; see `write_shard`."""
        return write_shard(self.out, spec, samples, suffixes=suffixes, num_bytes=num_bytes)

    def record(self, finished: Finished) -> None:
        """Record a finished shard for a later run."""
        save_record(self.records, finished)


class StorePlace(NamedTuple):
    """A folder at an address, and one on this machine where a shard is written first."""

    folder: RemoteFolder
    fingerprint: str
    scratch: Path

    def write(
        self,
        spec: PlannedShard,
        samples: Iterable[EncodedSample],
        *,
        suffixes: Sequence[str],
        num_bytes: int,
    ) -> ShardEntry:
        """Write a shard here, send it under its final name, and remove it here.

        Raises:
            StoreError: If it cannot be sent.
        """
        path = self.scratch / spec.name
        try:
            entry = write_shard(self.scratch, spec, samples, suffixes=suffixes, num_bytes=num_bytes)
            upload_file(self.folder, spec.name, path, sha256=entry.sha256)
        finally:
            path.unlink(missing_ok=True)
        return entry

    def record(self, finished: Finished) -> None:
        """Record a shard that has arrived.

        Raises:
            StoreError: If the record cannot be written.
        """
        name = f"{records_name(self.fingerprint)}/{finished.shard.name}.json"
        write_object(self.folder, name, encode_record(finished))


def records_name(fingerprint: str) -> str:
    """Give the name below OUT of the folder of a build's records."""
    return f"{STATE_NAME}/{fingerprint}"
