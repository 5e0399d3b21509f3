"""Read the runs of a folder, those on the same data together."""

from pathlib import Path
from typing import NamedTuple

import safetensors

from pipeline.common.errors import CheckpointError, ConfigError
from training.run.folder import RunPaths
from training.run.record import RunRecord, load_record
from training.score.crop_logits import Table
from training.study.finished import Run


class DataRuns(NamedTuple):
    """The runs of a folder that are on one data set: those that may be compared.

    `fingerprint` is of its shards, `name` that of their folder when the first run was trained.
    """

    fingerprint: str
    name: str
    finished: list[Run]
    unfinished: tuple[RunRecord, ...]


def read_runs(folder: Path) -> tuple[DataRuns, ...]:
    """Read every run in a folder, by data set, in order of the runs' folders.

    Raises:
        ConfigError: If there is none.
        CheckpointError: If a record or a table is damaged.
    """
    records = _read_records(folder)
    if not records:
        raise ConfigError(
            f"a report needs runs; got none in {folder}"
            f"{'' if folder.is_dir() else ', which does not exist'}. "
            f"Train some: srp-train from SHARDS --output {folder}"
        )
    by_data: dict[str, dict[Path, RunRecord]] = {}
    for path, record in records.items():
        by_data.setdefault(record.data.fingerprint, {})[path] = record
    return tuple(
        DataRuns(
            fingerprint=fingerprint,
            name=Path(next(iter(found.values())).shards).name,
            finished=_finished(found),
            unfinished=tuple(each for each in found.values() if each.evaluation is None),
        )
        for fingerprint, found in by_data.items()
    )


def read_runs_on(folder: Path, fingerprint: str) -> list[Run]:
    """Read the finished runs of a folder that are on these shards; there may be none.

    Args:
        folder: Whose subfolders are runs.
        fingerprint: Of the shards' build.

    Raises:
        CheckpointError: If a record or a table is damaged.
    """
    records = _read_records(folder)
    return _finished(
        {path: each for path, each in records.items() if each.data.fingerprint == fingerprint}
    )


def _read_records(folder: Path) -> dict[Path, RunRecord]:
    return {path.parent: load_record(path) for path in sorted(folder.glob("*/record.json"))}


def _finished(records: dict[Path, RunRecord]) -> list[Run]:
    return [
        Run(
            folder=run_folder, record=record, evaluation=record.evaluation,
            table=_read_table(run_folder, record),
        )
        for run_folder, record in records.items()
        if record.evaluation is not None
    ]  # fmt: skip


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
