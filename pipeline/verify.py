"""Check every byte of every shard against the manifest, and decode every sample."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline import manifest as manifests
from pipeline.errors import VerificationError
from pipeline.manifest import Manifest
from pipeline.reader import IndexedReader
from pipeline.schema import TAR_END
from pipeline.writer import sha256_of

_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a verification found to be whole.

    Attributes:
        folder: That was checked.
        manifest: That it was checked against.
        unnamed: Tars that the manifest does not name, and so do not exist for a reader.
    """

    folder: Path
    manifest: Manifest
    unnamed: tuple[str, ...]


def verify(shards: Path, *, workers: int, on_progress: Callable[[int, int], None]) -> Verdict:
    """Verify a folder of shards.

    Args:
        shards: The folder, or one that holds it.
        workers: Threads.
        on_progress: Told of samples done and to do.

    Raises:
        VerificationError: If any byte is not as written; names every damaged shard.
    """
    folder = manifests.find(shards)
    manifest = manifests.load(folder)
    faults = _find_faults(folder, manifest, workers=workers, on_progress=on_progress)
    if faults:
        raise VerificationError(
            f"{len(faults)} of {len(manifest.shards)} shards are damaged. " + " | ".join(faults)
        )
    _check_counts(manifest)
    named = {shard.name for shard in manifest.shards}
    unnamed = tuple(sorted(path.name for path in folder.glob("*.tar") if path.name not in named))
    return Verdict(folder=folder, manifest=manifest, unnamed=unnamed)


def _find_faults(
    folder: Path, manifest: Manifest, *, workers: int, on_progress: Callable[[int, int], None]
) -> list[str]:
    """Verify every shard; say what is wrong with each that is damaged, in order."""
    num_done = [0] * len(manifest.shards)  # each thread counts in its own places
    total = sum(len(shard.samples) for shard in manifest.shards)
    on_progress(0, total)
    pool = ThreadPoolExecutor(workers)
    try:
        check = partial(_verify_shard, folder, manifest, num_done)
        futures = [pool.submit(check, index) for index in range(len(manifest.shards))]
        pending = set(futures)
        while pending:
            _, pending = wait(pending, timeout=_POLL_S)
            on_progress(sum(num_done), total)
        return [fault for future in futures if (fault := future.result())]
    finally:
        pool.shutdown(cancel_futures=True)


def _verify_shard(folder: Path, manifest: Manifest, num_done: list[int], index: int) -> str | None:
    """Say what is wrong with one shard, or nothing."""
    shard = manifest.shards[index]
    try:
        reader = IndexedReader(folder, manifest, [shard])
        for row, record in enumerate(shard.samples):
            sample = reader.read(row)
            num_done[index] += 1
            if sample.label != record.label:
                raise VerificationError(
                    f"a label must be as in the manifest; got {sample.label}, not "
                    f"{record.label}, in {shard.name} (sample {record.key}). Rebuild the shard."
                )
        if sha256_of(folder / shard.name) != shard.sha256:
            raise VerificationError(
                f"a shard's sha256 must be as in the manifest; got another in {shard.name}, whose "
                f"samples are whole (its end, from offset {shard.num_bytes - len(TAR_END)}, or the "
                "manifest is not). Rebuild the shard."
            )
    except VerificationError as error:
        return str(error)
    return None


def _check_counts(manifest: Manifest) -> None:
    """Check that every source image is in a shard or among the rejects."""
    rejected = [reject.path.split("/", 1)[0] for reject in manifest.rejects]
    for split, num_sources in manifest.num_sources.items():
        accounted = manifest.num_samples(split) + rejected.count(split)
        if accounted != num_sources:
            raise VerificationError(
                f"every source image must be in a shard or among the rejects; got {accounted} "
                f"of {num_sources} in {split}. Build the shards again in a new folder."
            )
