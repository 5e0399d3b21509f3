"""What a run shows while it is trained: TensorBoard by default, Weights & Biases or Trackio.

The step of every figure is the epoch, from 1. Only rank 0 writes, after the epoch's last step has
been read anyway, so that no step waits. The record remains what is true of a run.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import CropLayout
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.data.shards import BatchReader
from training.run.state import RunState
from training.saved.folder import RunPaths
from training.saved.record import EpochRecord, RunRecord, run_options
from training.score.classify import Validation
from training.score.metrics import Evaluation
from training.score.pictures import draw_choices

NUM_PICTURES = 6
CHOICES = "val/choices"
PROJECT = "srp"
HOSTED = ("wandb", "trackio")  # whose calls are alike
MISSING = (
    "note: the run writes no event file, since TensorBoard is not installed. Install it with: "
    "pip install tensorboard"
)


class Writer(Protocol):
    """What figures of an epoch go to."""

    def write(
        self, figures: Mapping[str, float], picture: NDArray[np.uint8] | None, *, epoch: int
    ) -> None:
        """Add figures by name, and a picture of the choices, RGB `(H, W, 3)`."""

    def close(self) -> None:
        """End the run's part."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Gives a run's figures to each writer.

    Attributes:
        writers: None on other ranks than 0.
        plan: The candidates that the shards hold.
    """

    writers: tuple[Writer, ...]
    plan: CropLayout

    def trained(self, done: EpochRecord, state: RunState) -> None:
        """Show the steps of an epoch."""
        self._write(done.epoch, scalars_of(done, state), None)

    def validated(
        self, epoch: int, found: Validation | Evaluation, state: RunState, reader: BatchReader
    ) -> None:
        """Show a validation.

        Args:
            epoch: After which.
            found: Top-1 of the policy, and how often each candidate was chosen.
            state: Whose networks choose.
            reader: Reads the validation split.
        """
        figures, picture = {"val/top1": found.top1}, None
        if state.config.selects and self.writers:
            named = zip(state.scored.names, found.shares, strict=True)
            figures |= {f"crops/{name}, %": 100 * share for name, share in named}
            picture = draw_choices(state.scored, self.plan, reader, num_images=NUM_PICTURES)
        self._write(epoch, figures, picture)

    def _write(
        self, epoch: int, figures: Mapping[str, float], picture: NDArray[np.uint8] | None
    ) -> None:
        for writer in self.writers:
            writer.write(figures, picture, epoch=epoch)


def scalars_of(done: EpochRecord, state: RunState) -> dict[str, float]:
    """Name the figures of an epoch's steps."""
    groups = state.optimizer.param_groups  # the classifier's first, the proposer's last
    scalars = {
        "train/loss": done.train_loss,
        "train/top1": done.train_top1,
        "speed/images per s": done.images_per_s,
        "speed/waited for data, %": 100 * (done.waited_s or 0) / done.seconds,
        "rate/classifier": groups[0]["lr"],
    }
    if state.config.selects and not state.config.holds_proposer:
        scalars["rate/proposer"] = groups[-1]["lr"]
    return scalars


def check_writers(config: TrainConfig) -> None:
    """Refuse a writer whose package is missing, before the work.

    Raises:
        ConfigError: If there is one; says how to install it.
    """
    for name in HOSTED:
        if getattr(config, f"log_{name}"):
            _hosted(name)


@contextlib.contextmanager
def watched(
    paths: RunPaths, record: RunRecord, process: Process, progress: Progress, *, plan: CropLayout
) -> Iterator[Watch]:
    """Open what a run's options ask for, and close it at the end.

    Args:
        paths: Of the run, in whose folder the files go.
        record: Its finished epochs, which are not shown again.
        process: This one among its peers.
        progress: Is told of what is missing.
        plan: The candidates that the shards hold.
    """
    config = record.config
    with contextlib.ExitStack() as stack:
        writers: list[Writer] = []
        if process.is_main and config.log_tensorboard:
            try:
                writers.append(TensorBoard(paths.folder, record))
            except ImportError:
                if config.fold is None:  # a run in stages says it once
                    progress.event("unwatched", MISSING)
        for name in HOSTED:
            if process.is_main and getattr(config, f"log_{name}"):
                writers.append(Hosted(name, paths.folder, record))
        for writer in writers:
            stack.callback(writer.close)
        yield Watch(writers=tuple(writers), plan=plan)


class TensorBoard:
    """One event file in the run's folder; a resumed run adds a second, as TensorBoard expects.

    The second says that what the first holds of later epochs does not count.
    """

    def __init__(self, folder: Path, record: RunRecord) -> None:
        """Open the file.

        Raises:
            ImportError: If TensorBoard is not installed.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        done = len(record.epochs)
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
        if not done:
            # Not add_hparams, which makes a folder of its own.
            options = {name: _plain(value) for name, value in vars(record.config).items()}
            parts = hparams(options, {"val/top1": None})  # type: ignore[no-untyped-call]
            file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
            for part in parts:
                file.add_summary(part)
            self._writer.add_text("run.toml", f"```toml\n{run_options(record)}```")

    def write(
        self, figures: Mapping[str, float], picture: NDArray[np.uint8] | None, *, epoch: int
    ) -> None:
        """Write an epoch to the disk."""
        for name, figure in figures.items():
            self._writer.add_scalar(name, figure, epoch)
        if picture is not None:
            self._writer.add_image(CHOICES, picture, epoch, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Hosted:
    """A run of wandb, or of trackio, which has the same calls."""

    def __init__(self, name: str, folder: Path, record: RunRecord) -> None:
        """Begin the run, or go on with it.

        Raises:
            ConfigError: If the package is missing or refuses.
        """
        self._package = _hosted(name)
        options: dict[str, Any] = {
            "project": PROJECT,
            "name": "/".join(folder.parts[-2:]),  # of a half, the run's name and its own
            "config": asdict(record.config) | {"shards": record.shards, "commit": record.commit},
            "resume": "allow" if record.epochs else "never",
        }
        if name == "wandb":
            options |= {
                "dir": str(folder),
                "id": _wandb_id(folder) if record.epochs else None,
                "settings": {"console": "off", "silent": True},
            }
        try:
            self._run = self._package.init(**options)
        except Exception as error:
            # Each package has errors of its own, for example of a key that is missing.
            raise ConfigError(
                f"--log-{name} must be able to begin a run; got {type(error).__name__}: {error}. "
                f"Correct what it says, or drop --log-{name}."
            ) from error

    def write(
        self, figures: Mapping[str, float], picture: NDArray[np.uint8] | None, *, epoch: int
    ) -> None:
        """Log an epoch."""
        pictures = {} if picture is None else {CHOICES: self._package.Image(picture)}
        self._run.log({**figures, **pictures}, step=epoch)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def _wandb_id(folder: Path) -> str | None:
    """Find the id of a run's last part, which ends the name of its folder."""
    parts = sorted((folder / "wandb").glob("*run-*"))
    return parts[-1].name.rpartition("-")[2] if parts else None


def _hosted(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--log-{name} needs the package {name}, which is not installed. Install it with: "
            f"pip install {name}"
        ) from error


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
