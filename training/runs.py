"""Read the runs of a folder, all of which must be on the same data."""

from pathlib import Path

import safetensors

from pipeline.errors import CheckpointError, ConfigError
from training.figures import Run
from training.paths import RunPaths
from training.records import RunRecord, load_record
from training.table import Table


def read_runs(folder: Path) -> tuple[list[Run], tuple[RunRecord, ...]]:
    """Read every run in a folder.

    Returns:
        The finished runs, and the records of the others.

    Raises:
        ConfigError: If there is none, or they are on different data.
        CheckpointError: If a record or a table is damaged.
    """
    records = _read_records(folder)
    unfinished = tuple(record for record in records.values() if record.evaluation is None)
    return _finished(records), unfinished


def read_runs_on(folder: Path, fingerprint: str) -> list[Run]:
    """Read the finished runs of a folder that are on these shards; there may be none.

    Args:
        folder: Whose subfolders are runs.
        fingerprint: Of the shards' build.

    Raises:
        CheckpointError: If a record or a table is damaged.
    """
    records = {path.parent: load_record(path) for path in sorted(folder.glob("*/record.json"))}
    return _finished(
        {path: each for path, each in records.items() if each.data.fingerprint == fingerprint}
    )


def _finished(records: dict[Path, RunRecord]) -> list[Run]:
    return [
        Run(record=record, evaluation=record.evaluation, table=_read_table(run_folder, record))
        for run_folder, record in records.items()
        if record.evaluation is not None
    ]


def _read_records(folder: Path) -> dict[Path, RunRecord]:
    """Read the record of every run in a folder, all of which must be on the same data."""
    records = {path.parent: load_record(path) for path in sorted(folder.glob("*/record.json"))}
    if not records:
        raise ConfigError(
            f"a report needs runs; got none in {folder}"
            f"{'' if folder.is_dir() else ', which does not exist'}. "
            f"Train some: srp-train from SHARDS --output {folder}"
        )
    by_data = {record.data.fingerprint: path.name for path, record in records.items()}
    if len(by_data) > 1:
        raise ConfigError(
            f"runs must be on the same shards to be compared; got {len(by_data)} data sets in "
            f"{folder}, such as those of {' and '.join(sorted(by_data.values())[:2])}. "
            "Move the runs on other shards to another folder."
        )
    return records


def _read_table(run_folder: Path, record: RunRecord) -> Table | None:
    path = RunPaths(folder=run_folder).table
    try:
        return Table.load(path, weights=record.last)
    except FileNotFoundError:
        return None
    except (OSError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"a run's table must be whole; got {type(error).__name__}: {error} in {path}. "
            f"Delete it, or train {run_folder.name} again."
        ) from error
