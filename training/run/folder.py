"""Where a run's files lie."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """Where a run lies on disk.

    Attributes:
        folder: `OUTPUT/EXPERIMENT`.
    """

    folder: Path

    @property
    def out_of_fold(self) -> Path:
        """Logits of the crops of the training images, by classifiers that have not seen them."""
        return self.folder / "out_of_fold.safetensors"

    @property
    def logits(self) -> Path:
        """Logits of the crops of the validation images, by the last weights."""
        return self.folder / "logits.safetensors"

    def fold(self, fold: int) -> "RunPaths":
        """The run that leaves a fold of the training split out."""
        return RunPaths(folder=self.folder / f"fold-{fold}")

    @property
    def record(self) -> Path:
        """The run's record: config, hardware, metrics over time, evaluation."""
        return self.folder / "record.json"

    @property
    def holder(self) -> Path:
        """Who writes the run, while it is being written."""
        return self.folder / ".holder.json"

    @property
    def last(self) -> Path:
        """Checkpoint of the last step that was saved."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """Checkpoint of the epoch with the best validation accuracy."""
        return self.folder / "best.safetensors"

    @property
    def diverged(self) -> Path:
        """The samples at which the training loss stopped being a number."""
        return self.folder / "diverged.json"
