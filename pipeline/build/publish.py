"""The end of a build: rejects are named, shards come into place, and the manifest is written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.build.resume import Finished, save_state
from pipeline.common.atomic_io import sync_folder, write_file
from pipeline.common.errors import RejectsError
from pipeline.format import manifest
from pipeline.format.manifest import Manifest, Reject
from pipeline.format.sidecars import write_sidecars


def check_rejects(out: Path, rejects: Sequence[Reject], *, at_most: int) -> None:
    """Write down which images could not be used.

    Raises:
        RejectsError: If they are too many.
    """
    lines = "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects)
    path = out / manifest.REJECTS_NAME
    if rejects:
        write_file(path, lines.encode())
    else:
        path.unlink(missing_ok=True)  # of an earlier try
    if len(rejects) > at_most:
        first = rejects[0]
        raise RejectsError(
            f"at most --max-rejects {at_most} images may be unusable; got "
            f"{len(rejects)}, the first {first.path} ({first.reason}); all are in {path}. "
            f"Add --max-rejects {len(rejects)} to go on without them (the shards without rejects "
            "are kept), or mend them and build in a new folder."
        )


def publish(out: Path, records: Path, built: Manifest, finished: Mapping[str, Finished]) -> None:
    """Bring shards that lie aside into place, and write the manifest last.

    One that is there already is true at every moment: it is taken away before a shard that it
    does not describe comes into place.
    """
    text, path = manifest.encode_manifest(built), out / manifest.FILE_NAME
    if path.exists() and path.read_bytes() != text:
        for shard in finished.values():  # so that a later run can go on without the manifest
            save_state(records, shard)
        path.unlink()
        sync_folder(out)
    for record in built.shards:
        aside = records / record.name
        if aside.exists():
            aside.replace(out / record.name)
    sync_folder(out)
    write_sidecars(out, built)
    write_file(path, text)
