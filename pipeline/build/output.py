"""Where a build writes: a folder, as here, or an address, as in `store_output.py`."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.build.config import BuildConfig
from pipeline.build.prepare import ShardPlan, require_room
from pipeline.build.publish import check_rejects, publish
from pipeline.build.store_output import CHECKING, StoreOutput, noted_builder
from pipeline.common.atomic_io import sync_folder
from pipeline.common.progress import Progress
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import look_up
from pipeline.write.place import FolderPlace, StorePlace, records_name
from pipeline.write.resume import (
    SCRATCH_NAME,
    Finished,
    drop_records,
    finished_before,
    load_record,
    num_recorded,
    open_part,
    open_records,
    open_state,
    refuse_other_build,
    shards_folder,
)
from pipeline.write.scratch import open_scratch
from pipeline.write.worker import Task


class Output(Protocol):
    """OUT, as `build_shards` uses it, in this order; its parts use some of it."""

    @property
    def images(self) -> Path:
        """File that an archive's images are appended to."""

    def refuse_other_build(self, plan: ShardPlan) -> None:
        """Check that there is no other build, finished or not.

        Raises:
            ConfigError: If there is one.
        """

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

    def sync(self, plan: ShardPlan) -> None:
        """Let what a part has written outlast a power cut."""

    def num_recorded(self, plan: ShardPlan) -> int:
        """Count the shards that have a record, whether or not their bytes are still intact."""

    def intact(
        self, plan: ShardPlan, names: Sequence[str], *, workers: int, progress: Progress
    ) -> dict[str, Finished]:
        """Give the record of each shard whose bytes are those of its record, by name.

        Args:
            plan: The build; its shards may be left out.
            names: The shards to check.
            workers: Threads that hash shards, where that is needed.
            progress: Reports shards checked.
        """

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
            yield _store_output(config, config.out, scratch)
    else:
        with open_state(config.out) as state:
            yield FolderOutput(out=config.out, state=state)


@contextlib.contextmanager
def open_alone(out: Path | RemoteFolder) -> Iterator[Output]:
    """Open OUT where no shard is built, as `open_output` does.

    Raises:
        ConfigError: If it cannot be written, or a build or a part of one is writing the folder.
        StoreError: If the address cannot be written.
    """
    if isinstance(out, RemoteFolder):
        nowhere = Path(os.devnull)
        with noted_builder(out):
            yield StoreOutput(folder=out, scratch=nowhere, place_scratch=nowhere)
    else:
        with open_state(out) as state:
            yield FolderOutput(out=out, state=state)


@contextlib.contextmanager
def open_shared(config: BuildConfig, fingerprint: str) -> Iterator[Output]:
    """Open OUT for a part of a planned build, beside others.

    Raises:
        ConfigError: If a plan, a merge or a whole build is writing the folder.
        StoreError: If the address cannot be written.
    """
    if isinstance(config.out, RemoteFolder):
        note = f"{records_name(fingerprint)}/part-{secrets.token_hex(6)}.json"
        with open_scratch(config.scratch) as scratch, noted_builder(config.out, note):
            yield _store_output(config, config.out, scratch)
    else:
        with open_part(config.out) as state:
            yield FolderOutput(out=config.out, state=state)


def _store_output(config: BuildConfig, out: RemoteFolder, scratch: Path) -> StoreOutput:
    of_workers = config.scratch.absolute() if config.scratch else None
    return StoreOutput(folder=out, scratch=scratch, place_scratch=of_workers)


@dataclass(frozen=True, kw_only=True)
class FolderOutput:
    """A folder of this machine, locked; see `Output`."""

    out: Path
    state: Path

    @property
    def images(self) -> Path:
        """File in the folder of the build's state."""
        return self.state.absolute() / SCRATCH_NAME

    def refuse_other_build(self, plan: ShardPlan) -> None:
        """Compare with the manifest, or else with the records."""
        refuse_other_build(self.out, plan.spec, plan.fingerprint)

    def finished_before(
        self, plan: ShardPlan, *, expected: Mapping[str, str], progress: Progress
    ) -> dict[str, Finished]:
        """Compare length and SHA-256 of each shard with its record."""
        self.refuse_other_build(plan)
        records = self._records(plan)
        return finished_before(
            self.out, records, plan.shards, plan.spec, expected=expected, progress=progress
        )

    def place(self, plan: ShardPlan) -> FolderPlace:
        """Give OUT, or a folder aside if a manifest describes what is in OUT."""
        records = self._records(plan)
        return FolderPlace(shards_folder(self.out, records).absolute(), records.absolute())

    def require_room(self, tasks: Sequence[Task], config: BuildConfig) -> None:
        """Check that all shards fit."""
        require_room(tasks, self.out, codec=config.codec)

    def begin(self, plan: ShardPlan, before: Mapping[str, Finished]) -> None:
        """Make the folder of the records."""
        open_records(self._records(plan), plan.spec)

    def sync(self, plan: ShardPlan) -> None:
        """Sync the folders of shards and records."""
        for folder in (self.out, self._records(plan)):
            sync_folder(folder)

    def num_recorded(self, plan: ShardPlan) -> int:
        """Count the files."""
        return num_recorded(self._records(plan))

    def intact(
        self, plan: ShardPlan, names: Sequence[str], *, workers: int, progress: Progress
    ) -> dict[str, Finished]:
        """Compare length and SHA-256 of each shard with its record, some shards at a time."""
        kept = {}
        pool = ThreadPoolExecutor(workers)
        try:
            results = pool.map(lambda name: self._intact(plan, name), names)
            for number, (name, found) in enumerate(zip(names, results, strict=True), start=1):
                if found:
                    kept[name] = found
                progress.update(CHECKING, number, len(names))
        finally:
            pool.shutdown(cancel_futures=True)
        return kept

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

    def _intact(self, plan: ShardPlan, name: str) -> Finished | None:
        found = load_record(self._records(plan), name, plan.spec)
        return found if found and found.is_intact(self.out / name) else None

    def _records(self, plan: ShardPlan) -> Path:
        return self.state / plan.fingerprint


def has_manifest(out: Path | RemoteFolder) -> bool:
    """Whether OUT holds a finished build."""
    if isinstance(out, RemoteFolder):
        return look_up(out, FILE_NAME) is not None
    return (out / FILE_NAME).exists()
