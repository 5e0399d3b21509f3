"""A run's folder: where its files lie, and who may write to it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.atomic_io import named_output, require_folder
from pipeline.common.errors import ConfigError, EveryRankError
from pipeline.common.file_lock import writer_lock
from training.data.processes import Process, any_rank
from training.saved.record import OPTIONS, load_record


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """Where the files of one run lie; `folder` is `OUTPUT/EXPERIMENT`."""

    folder: Path

    @property
    def record(self) -> Path:
        """Config, hardware, metrics over time, evaluation."""
        return self.folder / "record.json"

    @property
    def options(self) -> Path:
        """The options of `srp-train from` that train the same run again: `run.toml`."""
        return self.folder / OPTIONS

    @property
    def last(self) -> Path:
        """Checkpoint of the last step that was saved."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the best validation accuracy."""
        return self.folder / "best.safetensors"

    @property
    def logits(self) -> Path:
        """Logits of the crops of the validation images, by the last weights."""
        return self.folder / "logits.safetensors"

    @property
    def out_of_fold(self) -> Path:
        """Logits of the crops of the training images, by classifiers that have not seen them."""
        return self.folder / "out_of_fold.safetensors"

    @property
    def diverged(self) -> Path:
        """The samples at which the training loss stopped being a number."""
        return self.folder / "diverged.json"

    @property
    def holder(self) -> Path:
        """Which process writes the run, while it does."""
        return self.folder / ".holder.json"

    def fold(self, fold: int) -> "RunPaths":
        """Give the run that leaves a fold of the training split out."""
        return RunPaths(folder=self.folder / f"half-{fold}")


@contextlib.contextmanager
def written_run(paths: RunPaths, process: Process) -> Iterator[None]:
    """Lock a run's folder, unless the run is finished and is only read.

    Raises:
        ConfigError: If another process writes it; names it.
        CheckpointError: If the run's record is damaged.
    """
    with named_output(paths.folder, "--output"):
        is_begun = paths.last.exists() and paths.record.exists()
    is_finished = is_begun and load_record(paths.record).evaluation is not None
    with contextlib.nullcontext() if is_finished else held_run(paths, process):
        yield


@contextlib.contextmanager
def held_run(paths: RunPaths, process: Process, *, option: str = "--output") -> Iterator[None]:
    """Lock a run's folder; rank 0 does it for all ranks.

    Args:
        paths: Paths of the run's files.
        process: This process among its peers.
        option: That named the folder.

    Raises:
        ConfigError: If another process writes it, which is named, or it cannot be written.
    """
    fault: ConfigError | OSError | None = None
    with contextlib.ExitStack() as stack:
        if process.is_main:
            try:
                stack.enter_context(_held(paths, option))
            except (ConfigError, OSError) as error:
                fault = error
        if any_rank(fault is not None, process):
            raise fault or EveryRankError(
                f"rank 0 cannot lock {paths.folder}; its own error gives the reason."
            )
        yield


@contextlib.contextmanager
def _held(paths: RunPaths, option: str) -> Iterator[None]:
    is_new = not paths.folder.exists()
    require_folder(paths.folder, option)
    with writer_lock(
        paths.folder, paths.holder, rule="a run must have one trainer at a time",
        fix="Wait for it to end, or name another --experiment or --output.",
    ):  # fmt: skip
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # an earlier error counts more
                paths.holder.unlink(missing_ok=True)
                if is_new:
                    paths.folder.rmdir()  # unless files are in it
