"""Check every byte of every shard against the manifest, and decode every sample.

Sidecar files must have the content that the manifest implies.

In a local folder, shards unchanged since an earlier verification are skipped, and at an address
those whose length and SHA-256 the store gives. A rotting disk changes neither: only reading every
shard finds it.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeline.common.atomic_io import write_file
from pipeline.common.errors import DownloadError, VerificationError
from pipeline.common.progress import SILENT, Progress
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.format.sample import Sample
from pipeline.format.sidecars import sidecars
from pipeline.format.ustar import TAR_END
from pipeline.read.reader import ShardReader
from pipeline.remote.address import WRITABLE_SCHEMES
from pipeline.remote.objects import look_up_all
from pipeline.stream.store import LocalStore, RemoteStore, Source, Store, open_store
from pipeline.stream.stream import SampleStream, read_exactly
from pipeline.write.shard_writer import sha256_of

VERIFIED_NAME = ".verified.json"
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verification found intact.

    Attributes:
        folder: The folder that was checked, or its address.
        manifest: What it was checked against.
        unnamed: Tars of a local folder that the manifest does not name; readers ignore them.
        unread: Names of shards that are unchanged since an earlier verification, or whose length
            and SHA-256 the store gives.
    """

    folder: Path | str
    manifest: Manifest
    unnamed: tuple[str, ...]
    unread: tuple[str, ...]


def verify_shards(
    shards: Path | str, *, workers: int, reads_all: bool = True, progress: Progress = SILENT
) -> Verdict:
    """Verify a folder of shards, by index where it is local, else as a stream.

    Args:
        shards: The folder, or one that holds it, or an address.
        workers: Threads.
        reads_all: Whether to read shards again that are unchanged since an earlier verification.
        progress: Reports samples checked.

    Raises:
        VerificationError: If any byte is damaged; names every damaged file.
    """
    store = open_store(shards)
    manifest = store.load_manifest()
    folder = store.folder if isinstance(store, LocalStore) else None
    # Taken before reading: a shard that changes meanwhile counts as changed the next time.
    found = ((shard.name, stamp(folder, shard)) for shard in manifest.shards) if folder else ()
    stamps = {name: at for name, at in found if at}
    unread = () if reads_all else _known_intact(store, manifest, stamps)
    rest = replace(manifest, shards=tuple(s for s in manifest.shards if s.name not in unread))
    faults = _find_faults(store, rest, workers=workers, progress=progress)
    if folder:
        save_stamps(folder, {name: at for name, at in stamps.items() if name not in faults})
    _raise_faults(store, manifest, tuple(faults.values()))
    named = {shard.name for shard in manifest.shards}
    tars = sorted(path.name for path in folder.glob("*.tar")) if folder else ()
    return Verdict(
        folder=folder or store.address,
        manifest=manifest,
        unnamed=tuple(name for name in tars if name not in named),
        unread=unread,
    )


def _known_intact(
    store: LocalStore | RemoteStore, manifest: Manifest, stamps: Mapping[str, "Stamp"]
) -> tuple[str, ...]:
    """Name the shards that need not be read.

    In a folder, those unchanged since they were verified; at an address, those of which the store
    gives the length and the SHA-256 of the manifest, as a build sent them.
    """
    if isinstance(store, LocalStore):
        known = load_stamps(store.folder)
        return tuple(name for name, at in stamps.items() if known.get(name) == at)
    if store.folder.scheme not in WRITABLE_SCHEMES:
        return ()
    found = look_up_all(store.folder, [shard.name for shard in manifest.shards])
    return tuple(
        shard.name
        for shard, stored in zip(manifest.shards, found, strict=True)
        if stored and stored.sha256 and stored.is_of(shard.num_bytes, shard.sha256)
    )


def _raise_faults(store: Store, manifest: Manifest, faults: Sequence[str]) -> None:
    """Raise an error for faults of shards and sidecar files, or for images that are missing."""
    of_sidecars = _find_sidecar_faults(store, manifest)
    if faults or of_sidecars:
        num_shards = len(manifest.shards)
        counted = f"{len(faults)} of {num_shards} shards are damaged. " if faults else ""
        raise VerificationError(counted + " | ".join(dict.fromkeys([*faults, *of_sidecars])))
    _check_counts(manifest)


def _find_sidecar_faults(store: Store, manifest: Manifest) -> list[str]:
    """Name the index files that are damaged, and the sidecar files that do not match."""
    wrong, of_indexes = [], []
    for name, text in sidecars(manifest):
        try:
            content = text().encode()
            found = store.read_file(name, at_most=len(content))
        except VerificationError as error:  # of the index file that it follows from
            of_indexes.append(str(error))
        except FileNotFoundError:
            wrong.append(f"{name} (missing)")
        except (OSError, DownloadError) as error:  # must not hide the faults of shards
            wrong.append(f"{name} (cannot be read: {error})")
        else:
            if found != content:
                wrong.append(f"{name} (other content)")
    if not wrong:
        return of_indexes
    return [
        *of_indexes,
        f"the sidecar files of DALI and timm must match the manifest; got {', '.join(wrong)} in "
        f"{store.address}. {store.fix}",
    ]


def _find_faults(
    store: Store, manifest: Manifest, *, workers: int, progress: Progress
) -> dict[str, str]:
    """Verify every shard; give the faults, by name and in order."""
    num_done = [0] * len(manifest.shards)  # each thread counts in its own places
    total = sum(len(shard.samples) for shard in manifest.shards)
    progress.update("verifying", 0, total)
    pool = ThreadPoolExecutor(workers)
    try:
        check = partial(_verify_shard, store, manifest, num_done)
        futures = [pool.submit(check, index) for index in range(len(manifest.shards))]
        pending = set(futures)
        while pending:
            _, pending = wait(pending, timeout=_POLL_S)
            progress.update("verifying", sum(num_done), total)
        results = zip(manifest.shards, futures, strict=True)
        return {shard.name: fault for shard, done in results if (fault := done.result())}
    finally:
        pool.shutdown(cancel_futures=True)


def _verify_shard(store: Store, manifest: Manifest, num_done: list[int], index: int) -> str | None:
    """Give the fault of one shard, or None."""
    shard = manifest.shards[index]
    try:
        samples, sha256 = _open_shard(store, manifest, shard)
        for sample, record in zip(samples, shard.samples, strict=True):
            num_done[index] += 1
            if sample.label != record.label:
                raise VerificationError(
                    f"a label must be as in the manifest; got {sample.label}, not "
                    f"{record.label}, in {shard.name} (sample {record.key}). Rebuild the shard."
                )
        if sha256() != shard.sha256:
            raise VerificationError(
                f"a shard's sha256 must be as in the manifest; got another in {shard.name}, whose "
                f"samples are intact: its end (from offset {shard.num_bytes - len(TAR_END)}) or "
                "the manifest is damaged. Rebuild the shard."
            )
    except VerificationError as error:
        return str(error)
    return None


def _open_shard(
    store: Store, manifest: Manifest, shard: ShardEntry
) -> tuple[Iterator[Sample], Callable[[], str]]:
    """Give a shard's samples, and its sha256, to be called after the last sample."""
    if isinstance(store, LocalStore):
        reader = ShardReader(store.folder, manifest, [shard])
        samples = map(reader.read, range(len(reader)))
        return samples, partial(sha256_of, store.folder / shard.name)
    hashed = _HashedStore(store)
    if not len(shard.samples):
        _read_end(hashed, shard)
        return iter(()), hashed.digest.hexdigest
    alone = replace(manifest, shards=(shard,))
    stream = SampleStream(hashed, shard.split, manifest=alone)
    return stream.samples(), hashed.digest.hexdigest


def _read_end(store: Store, shard: ShardEntry) -> None:
    """Read a shard without samples, which no stream opens: it holds only the end of a tar."""
    with closing(store.open(shard, start=0, stop=threading.Event())) as source:
        read_exactly(source, len(TAR_END) + 1)


class _HashedStore:
    """A store that hashes the one shard that is read from it."""

    def __init__(self, store: Store) -> None:
        self.address = store.address
        self.load_manifest = store.load_manifest
        self.read_file = store.read_file
        self.fix = store.fix
        self.digest = hashlib.sha256()
        self._store = store

    def open(self, shard: ShardEntry, *, start: int, stop: threading.Event) -> Source:
        source = self._store.open(shard, start=start, stop=stop)

        def read(num_bytes: int) -> bytes:
            data = source.read(num_bytes)
            self.digest.update(data)
            return data

        return replace(source, read=read)


def _check_counts(manifest: Manifest) -> None:
    """Check that every source image is a sample or a reject."""
    rejected = [reject.path.split("/", 1)[0] for reject in manifest.rejects]
    for split, num_sources in manifest.num_sources.items():
        accounted = manifest.num_samples(split) + rejected.count(split)
        if accounted != num_sources:
            raise VerificationError(
                f"every source image must be in a shard or among the rejects; got {accounted} "
                f"of {num_sources} in {split}. Build the shards again in a new folder."
            )


class Stamp(NamedTuple):
    """The state of an intact shard's file; times are the file system's, nanoseconds."""

    sha256: str
    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int


def stamp(folder: Path, shard: ShardEntry) -> Stamp | None:
    """Stat a shard's file; None if it is missing."""
    try:
        found = (folder / shard.name).stat()
    except OSError:
        return None
    return Stamp(shard.sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def load_stamps(folder: Path) -> dict[str, Stamp]:
    """Read which shards an earlier verification found intact."""
    try:
        return msgspec.json.decode((folder / VERIFIED_NAME).read_bytes(), type=dict[str, Stamp])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def save_stamps(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Record the intact shards."""
    try:
        write_file(folder / VERIFIED_NAME, msgspec.json.encode(stamps))
    except OSError:
        return  # a read-only folder is read wholly each time
