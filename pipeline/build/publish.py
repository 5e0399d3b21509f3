"""The end of a build: list the rejects, move shards into place, write the manifest last."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.build.prepare import ShardPlan
from pipeline.common.atomic_io import sync_folder, write_file
from pipeline.common.errors import RejectsError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest, Reject
from pipeline.format.sidecars import write_sidecars
from pipeline.sources.class_names import CLASS_NAMES
from pipeline.write.resume import Finished, save_record


def describe(plan: ShardPlan, finished: Mapping[str, Finished]) -> Manifest:
    """Make the manifest; the shards' names sort by split and index."""
    in_order = [finished[name] for name in sorted(finished)]
    return Manifest(
        spec=plan.spec,
        fingerprint=plan.fingerprint,
        classes=plan.classes,
        class_names=tuple(CLASS_NAMES.get(name, name) for name in plan.classes),
        num_sources=dict(plan.num_sources),
        rejects=tuple(reject for shard in in_order for reject in shard.rejects),
        shards=tuple(shard.shard for shard in in_order),
    )


def check_rejects(out: Path, rejects: Sequence[Reject], *, at_most: int) -> None:
    """List the rejected images in a file, and check their number.

    Raises:
        RejectsError: If there are too many.
    """
    path = out / manifest.REJECTS_NAME
    if rejects:
        write_file(path, reject_lines(rejects))
    else:
        path.unlink(missing_ok=True)  # of an earlier run
    require_few(rejects, path, at_most=at_most)


def reject_lines(rejects: Sequence[Reject]) -> bytes:
    """Give the file that lists rejected images: a line of JSON for each."""
    return "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects).encode()


def require_few(rejects: Sequence[Reject], path: Path | str, *, at_most: int) -> None:
    """Check the number of rejected images, which a file or an object lists.

    Raises:
        RejectsError: If there are too many.
    """
    if len(rejects) > at_most:
        first = rejects[0]
        raise RejectsError(
            f"at most --max-rejects {at_most} images may be unusable; got "
            f"{len(rejects)}, the first {first.path} ({first.reason}); all are in {path}. "
            f"Add --max-rejects {len(rejects)} to leave them out (finished shards are kept), or "
            "repair them and build in a new folder."
        )


def publish(out: Path, records: Path, built: Manifest, finished: Mapping[str, Finished]) -> None:
    """Move shards that were written aside into place, and write the manifest last.

    An existing manifest is never wrong: it is removed before a shard that it does not describe
    comes into place.
    """
    text, path = manifest.encode_manifest(built), out / manifest.FILE_NAME
    if path.exists() and path.read_bytes() != text:
        for shard in finished.values():  # so that a later run can continue without the manifest
            save_record(records, shard)
        sync_folder(records)
        path.unlink()
        sync_folder(out)
    for record in built.shards:
        aside = records / record.name
        if aside.exists():
            aside.replace(out / record.name)
    sync_folder(out)
    for name, content in manifest.index_files(built):
        write_file(out / name, content)
    write_sidecars(out, built)
    write_file(path, text)
