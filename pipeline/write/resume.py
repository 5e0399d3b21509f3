"""Continue an interrupted build: trust bytes, never names.

While a build runs, `OUT/.build/FINGERPRINT/` holds a record of each finished shard. The fingerprint
covers the options and the source's listing, so records of another build are never used. If OUT has
a manifest, rebuilt shards stay next to their records until all are finished, since a manifest must
not name a shard of other bytes.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from pipeline.common.atomic_io import named_output, remove_partials, whole_write, write_file
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.common.file_lock import shared_lock, writer_lock
from pipeline.common.progress import Progress
from pipeline.format import manifest
from pipeline.format.index import ShardEntry, decode_shard, encode_shard
from pipeline.format.manifest import Manifest, Reject
from pipeline.format.sample import member_suffixes
from pipeline.format.spec import DataSpec
from pipeline.remote.address import RemoteFolder
from pipeline.write.planning import Planned
from pipeline.write.shard_writer import sha256_of

STATE_NAME = ".build"
LOST_FOUND = "lost+found"  # in every new file system of the ext family
SCRATCH_NAME = "images"
PICTURES_NAME = "pictures"
HOLDER_NAME = "holder.json"
SPEC_NAME = "spec.json"
PLAN_NAME = "plan.jsonl"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished shard, and the images that were rejected from it."""

    shard: ShardEntry
    rejects: tuple[Reject, ...]

    def is_intact(self, path: Path) -> bool:
        """Whether a file has the length and the SHA-256 of the shard."""
        return (
            path.is_file()
            and path.stat().st_size == self.shard.num_bytes
            and sha256_of(path) == self.shard.sha256
        )


@contextlib.contextmanager
def open_state(out: Path) -> Iterator[Path]:
    """Lock OUT, and give its folder for the state of an unfinished build.

    A build that ends before its first shard leaves nothing behind.

    Raises:
        ConfigError: If the output folder cannot be written, or another build is writing it.
    """
    state = out / STATE_NAME
    with named_output(out, "OUT"):
        is_new = not out.exists()
        state.mkdir(parents=True, exist_ok=True)
    note, rule = state / HOLDER_NAME, "only one build at a time may write OUT"
    with writer_lock(out, note, rule=rule, fix="Wait for it to end, or choose another folder."):
        try:
            for folder in (out, state):
                remove_partials(folder)
            yield state
        finally:
            # A folder that is not empty is what a later run continues from; another error must
            # not hide the one before.
            with contextlib.suppress(OSError):
                remove_partials(out)  # of killed workers
                for name in (SCRATCH_NAME, HOLDER_NAME):
                    (state / name).unlink(missing_ok=True)
                state.rmdir()
                if is_new:
                    out.rmdir()


@contextlib.contextmanager
def open_part(out: Path) -> Iterator[Path]:
    """Share OUT with other parts of a planned build, and give the folder of its state.

    Nothing that another part writes is touched: partial files of killed workers stay until the
    parts are merged. Where the file system has no locks, the note of a whole build is respected.

    Raises:
        ConfigError: If a plan, a merge or a whole build is writing OUT.
    """
    state = out / STATE_NAME
    rule = "parts may write OUT beside each other only"
    with shared_lock(out, state / HOLDER_NAME, rule=rule, fix="Wait for it to end."):
        yield state


@contextlib.contextmanager
def open_new(out: Path) -> Iterator[Path]:
    """Lock a folder that is to become a data set, as a build locks its own.

    Returns:
        The folder in it that collects pictures until they are complete.

    Raises:
        ConfigError: If the output folder is not empty, cannot be written, or is being written.
    """
    _require_new(out)  # before anything is written into a folder of other files
    with open_state(out) as state:
        _require_new(out)  # another process may have finished meanwhile
        yield state / PICTURES_NAME


def _require_new(out: Path) -> None:
    """Accept a folder that is absent, empty, or holds only what a killed `open_new` left."""
    state = out / STATE_NAME
    held = [*out.iterdir()] if out.is_dir() else [out] if out.exists() else []
    if state in held and state.is_dir():
        held.remove(state)
        held += [path for path in state.iterdir() if path.name not in (HOLDER_NAME, PICTURES_NAME)]
    held = [path for path in held if path.name != LOST_FOUND and not path.match(".*.partial")]
    if held:
        raise ConfigError(
            f"OUT must be absent or an empty folder; got {out}, which exists. "
            "Choose another folder, or delete this one first."
        )


def open_records(records: Path, spec: DataSpec) -> None:
    """Make the folder for the records of a build's finished shards."""
    records.mkdir(exist_ok=True)
    write_file(records / SPEC_NAME, msgspec.json.encode(spec))
    remove_partials(records)


def drop_records(records: Path) -> None:
    """Remove what a published build no longer needs; a later run removes what is left."""
    (records.parent / PLAN_NAME).unlink(missing_ok=True)  # first: a plan promises its records
    shutil.rmtree(records, ignore_errors=True)


def refuse_other_build(out: Path, spec: DataSpec, fingerprint: str) -> None:
    """Check that a folder holds no other build, published or interrupted.

    Raises:
        ConfigError: If it does; names what differs.
    """
    if (out / manifest.FILE_NAME).exists():
        other = manifest.load(out)
        others = {} if other.fingerprint == fingerprint else {fingerprint: asdict(other.spec)}
    else:
        others = {
            records.name: _load_spec(records / SPEC_NAME)
            for records in (out / STATE_NAME).iterdir()
            if records.is_dir() and records.name != fingerprint
        }
    for theirs in others.values():
        raise other_build(out, spec, theirs)


def other_build(out: Path | RemoteFolder, spec: DataSpec, theirs: Mapping[str, Any]) -> ConfigError:
    """Make the error of an OUT that holds another build, of a spec with these fields."""
    return ConfigError(
        f"OUT must be new or hold the same build; got {out} "
        f"({changes(spec, theirs) or 'other source images'}). "
        "Choose another folder, or delete this one."
    )


def changes(spec: DataSpec, theirs: Mapping[str, Any]) -> str:
    """Name what differs between the fields of another build's spec and the spec of this one."""
    return "; ".join(
        f"{name} {theirs[name]!r} there, {ours!r} requested"
        for name, ours in asdict(spec).items()
        if name in theirs and theirs[name] != ours
    )


def _load_spec(path: Path) -> dict[str, Any]:
    try:
        return decode_spec(path.read_bytes())
    except OSError:
        return {}


def decode_spec(data: bytes) -> dict[str, Any]:
    """Read the fields of a build's spec; none if it is damaged."""
    try:
        return asdict(msgspec.json.decode(data, type=DataSpec))
    except (TypeError, ValueError):
        return {}


def finished_before(
    out: Path,
    records: Path,
    planned: Sequence[Planned],
    spec: DataSpec,
    *,
    expected: Mapping[str, str],
    progress: Progress,
) -> dict[str, Finished]:
    """Find the finished shards of a build whose bytes are intact, by name.

    Args:
        out: Folder of the shards.
        records: Folder of their records, and of shards that were written aside.
        planned: The shards of the build.
        spec: The spec of the build.
        expected: For a repair, the SHA-256 that each shard must have, by name; else empty.
        progress: Reports shards checked.
    """
    published = _published(out, planned)
    finished = {}
    for number, (shard, _) in enumerate(planned):
        aside = records / shard.name
        noted = load_record(records, shard.name, spec)
        in_place = published.get(shard.name) or noted
        digest = expected.get(shard.name)
        kept = _intact(aside, noted, expected=digest)
        if not kept:
            aside.unlink(missing_ok=True)
            kept = _intact(out / shard.name, in_place, expected=digest)
        if kept:
            finished[shard.name] = kept
        if in_place:
            progress.update("checking finished shards", number + 1, len(planned))
    return finished


def shards_folder(out: Path, records: Path) -> Path:
    """Give the folder to write shards to: aside, if a manifest describes those in place."""
    return records if (out / manifest.FILE_NAME).exists() else out


def _published(out: Path, planned: Sequence[Planned]) -> dict[str, Finished]:
    if not (out / manifest.FILE_NAME).exists():
        return {}
    return finished_of(manifest.load(out), planned)


def finished_of(published: Manifest, planned: Sequence[Planned]) -> dict[str, Finished]:
    """Give the shards that a manifest names and their rejects, as records do, by name."""
    entries = {shard.name: shard for shard in map(_with_index, published.shards) if shard}
    finished = {}
    for shard, images in planned:
        if shard.name not in entries:
            continue
        paths = {image.path for image in images}
        rejects = tuple(reject for reject in published.rejects if reject.path in paths)
        finished[shard.name] = Finished(shard=entries[shard.name], rejects=rejects)
    return finished


def _with_index(shard: ShardEntry) -> ShardEntry | None:
    """Read a shard's index, if it is a file; None, if that is damaged, means a rebuild."""
    try:
        return replace(shard, samples=shard.samples.in_memory())
    except VerificationError:
        return None


def _intact(path: Path, noted: Finished | None, *, expected: str | None) -> Finished | None:
    """Give the record of a shard if the shard can be kept.

    A shard with rejects is rebuilt, unless its SHA-256 is the expected one: its images may be
    readable by now.
    """
    if noted is None:
        return None
    if noted.rejects if expected is None else noted.shard.sha256 != expected:
        return None
    return noted if noted.is_intact(path) else None


def num_recorded(records: Path) -> int:
    """Count the shards that have a record, whether or not their bytes are still intact."""
    return sum(1 for _ in records.glob("*.tar.json"))


def save_record(records: Path, finished: Finished) -> None:
    """Record a finished shard for a later run of the same build."""
    data = encode_record(finished)
    with whole_write(records / f"{finished.shard.name}.json", num_bytes=len(data)) as file:
        file.write(data)


def load_record(records: Path, name: str, spec: DataSpec) -> Finished | None:
    """Read an earlier run's record of a shard; None, if it cannot be read, means a rebuild."""
    try:
        data = (records / f"{name}.json").read_bytes()
    except OSError:
        return None
    return decode_record(data, spec)


def encode_record(finished: Finished) -> bytes:
    """Give the JSON of a finished shard's record."""
    fields = {"shard": encode_shard(finished.shard), "rejects": finished.rejects}
    return msgspec.json.encode(fields)


def decode_record(data: bytes, spec: DataSpec) -> Finished | None:
    """Read a record; None if it is damaged."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        return Finished(
            shard=decode_shard(fields["shard"], member_suffixes(spec)),
            rejects=msgspec.json.decode(fields["rejects"], type=tuple[Reject, ...]),
        )
    except (KeyError, OverflowError, RecursionError, ValueError):
        return None
