"""Where a worker leaves a finished shard and its record: in a folder, or at an address."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.format.index import ShardEntry
from pipeline.format.sample import PlannedShard
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import upload_file
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

    def keep(self, finished: Finished) -> None:
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
        """Write a shard here; see `write_shard`."""
        return write_shard(self.scratch, spec, samples, suffixes=suffixes, num_bytes=num_bytes)

    def keep(self, finished: Finished) -> None:
        """Send a finished shard under its final name, then its record, and remove it here.

        Raises:
            StoreError: If they cannot be sent.
        """
        shard = finished.shard
        path = self.scratch / shard.name
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
