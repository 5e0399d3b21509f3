"""Where a build writes: a folder, as here, or an address, as in `store_output.py`."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.build.config import BuildConfig
from pipeline.build.prepare import ShardPlan, require_room
from pipeline.build.publish import check_rejects, publish
from pipeline.build.store_output import StoreOutput, noted_builder
from pipeline.common.progress import Progress
from pipeline.format.manifest import Manifest
from pipeline.remote.address import RemoteFolder
from pipeline.write.place import FolderPlace, StorePlace
from pipeline.write.resume import (
    SCRATCH_NAME,
    Finished,
    drop_records,
    finished_before,
    open_records,
    open_state,
    refuse_other_build,
    shards_folder,
)
from pipeline.write.scratch import open_scratch
from pipeline.write.worker import Task


class Output(Protocol):
    """OUT, as `build_shards` uses it, in this order."""

    @property
    def images(self) -> Path:
        """File that an archive's images are appended to."""

    def finished_before(
        self, plan: ShardPlan, *, expected: Mapping[str, str], progress: Progress
    ) -> dict[str, Finished]:
        """Find the finished shards of a build whose bytes are intact, by name.

        Raises:
            ConfigError: If OUT holds another build.
        """

    def place(self, plan: ShardPlan) -> FolderPlace | StorePlace:
        """Give where workers write."""

    def require_room(self, tasks: Sequence[Task], config: BuildConfig) -> None:
        """Check that the shards fit on the disk.

        Raises:
            NoRoomError: If they do not.
        """

    def begin(self, plan: ShardPlan, before: Mapping[str, Finished]) -> None:
        """Prepare for the records of finished shards."""

    def publish(
        self, plan: ShardPlan, built: Manifest, finished: Mapping[str, Finished], *, at_most: int
    ) -> None:
        """List the rejects, and write the manifest last.

        Raises:
            RejectsError: If there are too many rejects; nothing is published.
        """

    def forget(self, plan: ShardPlan) -> None:
        """Remove the records, so that no later build reuses these shards."""


@contextlib.contextmanager
def open_output(config: BuildConfig) -> Iterator[Output]:
    """Open OUT for one build.

    Raises:
        ConfigError: If it cannot be written, or another build is writing the same folder.
        StoreError: If the address cannot be written.
    """
    if isinstance(config.out, RemoteFolder):
        with open_scratch(config.scratch) as scratch, noted_builder(config.out):
            yield StoreOutput(folder=config.out, scratch=scratch)
    else:
        with open_state(config.out) as state:
            yield FolderOutput(out=config.out, state=state)


@dataclass(frozen=True, kw_only=True)
class FolderOutput:
    """A folder of this machine, locked; see `Output`."""

    out: Path
    state: Path

    @property
    def images(self) -> Path:
        """File in the folder of the build's state."""
        return self.state.absolute() / SCRATCH_NAME

    def finished_before(
        self, plan: ShardPlan, *, expected: Mapping[str, str], progress: Progress
    ) -> dict[str, Finished]:
        """Compare length and SHA-256 of each shard with its record."""
        refuse_other_build(self.out, plan.spec, plan.fingerprint)
        records = self._records(plan)
        return finished_before(
            self.out, records, plan.shards, plan.spec, expected=expected, progress=progress
        )

    def place(self, plan: ShardPlan) -> FolderPlace:
        """Give OUT, or a folder aside if a manifest describes what is in OUT."""
        return folder_place(self.out, self._records(plan))

    def require_room(self, tasks: Sequence[Task], config: BuildConfig) -> None:
        """Check that all shards fit."""
        require_room(tasks, self.out, codec=config.codec)

    def begin(self, plan: ShardPlan, before: Mapping[str, Finished]) -> None:
        """Make the folder of the records."""
        open_records(self._records(plan), plan.spec)

    def publish(
        self, plan: ShardPlan, built: Manifest, finished: Mapping[str, Finished], *, at_most: int
    ) -> None:
        """Move shards that were written aside into place, and write the manifest last."""
        check_rejects(self.out, built.rejects, at_most=at_most)
        publish(self.out, self._records(plan), built, finished)
        drop_records(self._records(plan))

    def forget(self, plan: ShardPlan) -> None:
        """Remove the folder of the records."""
        shutil.rmtree(self._records(plan))

    def _records(self, plan: ShardPlan) -> Path:
        return self.state / plan.fingerprint


def folder_place(out: Path, records: Path) -> FolderPlace:
    """Give where workers write shards and records, wherever they run."""
    return FolderPlace(shards_folder(out, records).absolute(), records.absolute())
