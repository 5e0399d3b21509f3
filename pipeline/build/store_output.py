"""OUT at an address: what a store holds decides what is kept; nothing is downloaded but records.

Objects appear whole. A shard is sent under its final name, then its record; the manifest comes last
of all. A store has no locks: two builds of the same images and options write the same bytes, and
one of another spec finds the first one's records or manifest and ends.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from pipeline.build.config import BuildConfig
from pipeline.build.prepare import ShardPlan, require_room
from pipeline.build.publish import reject_lines, require_few
from pipeline.common.errors import StoreError
from pipeline.common.file_lock import LockOwner
from pipeline.common.progress import Progress
from pipeline.format.manifest import (
    FILE_NAME,
    REJECTS_NAME,
    Manifest,
    encode_manifest,
    index_files,
)
from pipeline.format.sidecars import sidecars
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import (
    abort_uploads,
    list_objects,
    look_up,
    look_up_all,
    read_object,
    read_objects,
    remove_objects,
    write_object,
    write_objects,
)
from pipeline.stream.store import RemoteStore
from pipeline.write.place import StorePlace, records_name
from pipeline.write.resume import (
    HOLDER_NAME,
    PLAN_NAME,
    SCRATCH_NAME,
    SPEC_NAME,
    STATE_NAME,
    Finished,
    decode_record,
    decode_spec,
    encode_record,
    finished_of,
    other_build,
)
from pipeline.write.worker import Task

CHECKING = "checking finished shards"


@contextlib.contextmanager
def noted_builder(
    folder: RemoteFolder, name: str = f"{STATE_NAME}/{HOLDER_NAME}"
) -> Iterator[None]:
    """Leave a note of who builds at an address, for people; it also shows that one may write.

    Raises:
        StoreError: If one may not.
    """
    since = f"{datetime.now().astimezone():%F %T %Z}"
    write_object(
        folder, name, msgspec.json.encode(LockOwner(os.getpid(), socket.gethostname(), since))
    )
    try:
        yield
    finally:
        with contextlib.suppress(StoreError):  # an earlier error matters more
            remove_objects(folder, [name])


@dataclass(frozen=True, kw_only=True)
class StoreOutput:
    """A folder at an address; see `pipeline.build.output.Output`.

    Attributes:
        folder: The address.
        scratch: Folder of this machine for an archive's images.
        place_scratch: Folder in which each worker makes its own, wherever it runs; None takes one
            among the user's caches there.
    """

    folder: RemoteFolder
    scratch: Path
    place_scratch: Path | None

    @property
    def images(self) -> Path:
        """File in the scratch folder."""
        return self.scratch / SCRATCH_NAME

    def finished_before(
        self, plan: ShardPlan, *, expected: Mapping[str, str], progress: Progress
    ) -> dict[str, Finished]:
        """Compare what the store says of each shard with its record, if that has no rejects.

        Rejected images may be readable by now.
        """
        noted = self._published(plan)
        if noted is None:
            self.refuse_other_build(plan)
            records = self._noted(plan, [shard.name for shard, _ in plan.shards])
            noted = {name: found for name, found in records.items() if not found.rejects}
        return self._arrived(noted, progress)

    def intact(
        self, plan: ShardPlan, names: Sequence[str], *, workers: int, progress: Progress
    ) -> dict[str, Finished]:
        """Compare what the store says of each shard with its record.

        What killed processes have sent of the shards is given up.
        """
        abort_uploads(self.folder, names)
        return self._arrived(self._noted(plan, names), progress)

    def num_recorded(self, plan: ShardPlan) -> int:
        """Count what is listed."""
        there = list_objects(self.folder, records_name(plan.fingerprint))
        return sum(name.endswith(".tar.json") for name in there)

    def place(self, plan: ShardPlan) -> StorePlace:
        """Give the address, and where shards are written first."""
        return StorePlace(self.folder, plan.fingerprint, self.place_scratch)

    def require_room(self, tasks: Sequence[Task], config: BuildConfig) -> None:
        """Check that a shard of each worker fits into the scratch folder; not on Ray's nodes."""
        if config.engine == "ray":
            return
        at_once = sorted(tasks, key=lambda task: task.num_bytes)[-config.workers :]
        require_room(at_once, self.scratch, codec=config.codec)

    def begin(self, plan: ShardPlan, before: Mapping[str, Finished]) -> None:
        """Write the spec beside the records; remove a manifest of which a shard is missing.

        A manifest is never wrong: what it says of the shards that are kept becomes records first.
        What killed processes have sent of the missing shards is given up.
        """
        if len(before) == len(plan.shards):
            return
        abort_uploads(self.folder, {shard.name for shard, _ in plan.shards} - before.keys())
        name = records_name(plan.fingerprint)
        write_object(self.folder, f"{name}/{SPEC_NAME}", msgspec.json.encode(plan.spec))
        if look_up(self.folder, FILE_NAME):
            write_objects(
                self.folder,
                {f"{name}/{shard}.json": encode_record(kept) for shard, kept in before.items()},
            )
            remove_objects(self.folder, [FILE_NAME])

    def publish(
        self, plan: ShardPlan, built: Manifest, finished: Mapping[str, Finished], *, at_most: int
    ) -> None:
        """Write the side files that are missing, then the manifest; then remove the records."""
        rejects = self.folder.locate(REJECTS_NAME)
        if built.rejects:
            write_object(self.folder, REJECTS_NAME, reject_lines(built.rejects))
        else:
            remove_objects(self.folder, [REJECTS_NAME])  # of an earlier run
        require_few(built.rejects, rejects, at_most=at_most)
        there = list_objects(self.folder)
        beside = dict(index_files(built))
        beside |= {sidecar.name: sidecar.text().encode() for sidecar in sidecars(built)}
        missing = {name: data for name, data in beside.items() if there.get(name) != len(data)}
        write_objects(self.folder, missing)
        text = encode_manifest(built)
        if FILE_NAME not in there or read_object(self.folder, FILE_NAME) != text:
            write_object(self.folder, FILE_NAME, text)
        self.forget(plan)

    def sync(self, plan: ShardPlan) -> None:
        """Do nothing: what a store has taken is safe."""

    def forget(self, plan: ShardPlan) -> None:
        """Remove the plan of parts, which promises its records, then the records."""
        there = list_objects(self.folder, STATE_NAME)
        remove_objects(self.folder, there.keys() & {f"{STATE_NAME}/{PLAN_NAME}"})
        records = f"{records_name(plan.fingerprint)}/"
        remove_objects(self.folder, [name for name in there if name.startswith(records)])

    def _published(self, plan: ShardPlan) -> dict[str, Finished] | None:
        """Give what a manifest says of the shards; None without a manifest."""
        if look_up(self.folder, FILE_NAME) is None:
            return None
        published = RemoteStore(folder=self.folder, cache=None).load_manifest()
        if published.fingerprint != plan.fingerprint:
            raise other_build(self.folder, plan.spec, msgspec.to_builtins(published.spec))
        return finished_of(published, plan.shards)

    def refuse_other_build(self, plan: ShardPlan) -> None:
        """Check that there are no records of another build."""
        for name in list_objects(self.folder, STATE_NAME):
            if name.endswith(f"/{SPEC_NAME}") and plan.fingerprint not in name:
                theirs = decode_spec(read_object(self.folder, name))
                raise other_build(self.folder, plan.spec, theirs)

    def _noted(self, plan: ShardPlan, shards: Sequence[str]) -> dict[str, Finished]:
        """Read the records of some shards, as far as there are any."""
        there = list_objects(self.folder, records_name(plan.fingerprint))
        names = {
            name: shard
            for shard in shards
            if (name := f"{records_name(plan.fingerprint)}/{shard}.json") in there
        }
        records = zip(names.values(), read_objects(self.folder, names), strict=True)
        decoded = {shard: decode_record(data, plan.spec) for shard, data in records}
        return {shard: found for shard, found in decoded.items() if found}

    def _arrived(self, noted: Mapping[str, Finished], progress: Progress) -> dict[str, Finished]:
        """Keep the records of shards of which the store gives the length and the SHA-256."""
        arrived = {}
        there = look_up_all(self.folder, list(noted))
        pairs = zip(noted.items(), there, strict=True)
        for number, ((name, found), stored) in enumerate(pairs, start=1):
            if stored and stored.is_of(found.shard.num_bytes, found.shard.sha256):
                arrived[name] = found
            progress.update(CHECKING, number, len(noted))
        return arrived
