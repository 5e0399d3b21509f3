"""What a run leaves behind: one JSON that says what was run, on what, and what came out."""

import dataclasses
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from pipeline import DataSpec, Manifest, ShardFolder
from pipeline.command.options_file import options_text
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError, ConfigError
from training.config import MACHINE_FIELDS, NEEDS, TrainConfig
from training.data.processes import cpu_capabilities
from training.model.policies import policies_using
from training.optim.schedules import schedules_using
from training.score.metrics import Evaluation

FORMAT = "srp-run/1"
OPTIONS = "run.toml"


@dataclass(frozen=True, kw_only=True)
class EpochPart:
    """How far an epoch has come.

    Attributes:
        epoch: Finished ones before it.
        step: Steps done.
        sums: Losses and hits summed over the images, for each rank; empty before the first step.
        seconds: Time of the steps, s.
        waited_s: The part of it in which rank 0 waited for its next batch, s.
    """

    epoch: int
    step: int = 0
    sums: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0
    waited_s: float = 0.0

    def sums_of(self, rank: int, world_size: int) -> tuple[float, float]:
        """Give one rank's sums; where there were other ranks, rank 0 takes those of all."""
        if len(self.sums) == world_size:
            return self.sums[rank]
        if rank or not self.sums:
            return 0.0, 0.0
        loss, hits = (sum(column) for column in zip(*self.sums, strict=True))
        return loss, hits

    def finished(self, images_per_step: int) -> "EpochRecord":
        """Turn the sums of a finished epoch into its figures."""
        num_images = self.step * images_per_step
        loss, hits = (sum(column) for column in zip(*self.sums, strict=True))
        return EpochRecord(
            epoch=self.epoch + 1,
            train_loss=loss / num_images,
            train_top1=100 * hits / num_images,
            val_top1=None,
            images_per_s=num_images / self.seconds,
            seconds=self.seconds,
            waited_s=self.waited_s,
        )


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        train_loss: Mean over the epoch's steps, of what the classifier saw.
        train_top1: The same, %.
        val_top1: Accuracy of the policy on the validation split, %; None if not evaluated.
        images_per_s: Rate of the training steps, all ranks together, without evaluation.
        seconds: Time of the training steps, s.
        waited_s: The part of it in which rank 0 waited for its next batch, s; None in records of
            old versions.
    """

    epoch: int
    train_loss: float
    train_top1: float
    val_top1: float | None
    images_per_s: float
    seconds: float
    waited_s: float | None = None

    def line(self, stage: str, epochs: int) -> str:
        """Write the epoch on one line.

        Args:
            stage: That it belongs to.
            epochs: Of the stage.
        """
        val = "" if self.val_top1 is None else f", val top-1 {self.val_top1:.2f} %"
        share = 100 * (self.waited_s or 0) / self.seconds
        waited = f", waited for data {share:.0f} % of the time" if share >= 1 else ""
        return (
            f"{stage}, epoch {self.epoch}/{epochs}: loss {self.train_loss:.4f}, "
            f"train top-1 {self.train_top1:.2f} %{val}, {self.images_per_s:.0f} images/s{waited}"
        )

    def cells(self, stage: str, epochs: int) -> dict[str, str]:
        """Write the epoch as a row of a table, by heading; arguments as for `line`."""
        val = "" if self.val_top1 is None else f"{self.val_top1:.2f}"
        return {
            "stage": stage,
            "epoch": f"{self.epoch}/{epochs}",
            "loss": f"{self.train_loss:.4f}",
            "train top-1, %": f"{self.train_top1:.2f}",
            "val top-1, %": val,
            "images/s": f"{self.images_per_s:.0f}",
            "waited, %": f"{100 * (self.waited_s or 0) / self.seconds:.0f}",
        }


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A stage before the run's own epochs.

    Attributes:
        name: `explore`, `judge` or `fit`.
        seconds: Time over every resume, s; of `explore`, that of the training steps.
        curves: Epochs of each classifier that was trained in it.
        errors: Mean chance of an error on the chosen crops, after each pass of a fit.
    """

    name: str
    seconds: float
    curves: tuple[tuple[EpochRecord, ...], ...] = ()
    errors: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What was trained on.

    Attributes:
        fingerprint: That of the build; see `pipeline.format.manifest`.
        spec: What the pixels are.
        classes: Folder names, in the order of the logits.
        class_names: The same for people.
        num_train: Samples.
        num_val: Samples.
    """

    fingerprint: str
    spec: DataSpec
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    num_train: int
    num_val: int

    @classmethod
    def of(cls, manifest: Manifest) -> "DataRecord":
        """Take it from a manifest."""
        return cls(
            fingerprint=manifest.fingerprint,
            spec=manifest.spec,
            classes=manifest.classes,
            class_names=manifest.class_names,
            num_train=manifest.num_samples("train"),
            num_val=manifest.num_samples("val"),
        )


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """What kept the shards of an address on this machine.

    Attributes:
        folder: Its path.
        limit_mib: Size that it should not exceed, MiB; None keeps all.
    """

    folder: str
    limit_mib: int | None

    @classmethod
    def of(cls, shards: ShardFolder) -> "CacheRecord | None":
        """Take it from opened shards."""
        if shards.cache is None:
            return None
        return cls(folder=str(shards.cache.folder), limit_mib=shards.cache.limit_mib)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, finished or not.

    Attributes:
        name: Name of the run's folder.
        config: As asked for.
        data: That it was trained on.
        shards: Address of the shards, or their folder, relative to where training was started
            unless it was typed in full.
        commit: Commit of srp, with `+` if the working tree had changes.
        hardware: In words.
        world_size: Processes.
        stages: Finished ones before the run's own epochs; of policies that have any.
        cache: Of the shards of an address; None for those of a folder.
        window_mib: Shards whose samples were shuffled together, MiB, where the cache cannot hold
            all; None where an epoch shuffles all samples.
        teachers: SHA-256 that the checkpoint of each `--kd-model` holds of itself.
        epochs: Finished ones.
        evaluation: After the last epoch, with the last weights; None until then.
        seconds: Wall time of all of it so far, over every resume.
        last: SHA-256 that the last checkpoint holds of itself; empty in records of old versions.
        best: The same of the best one.
        before: The same for the checkpoints that were there before this save, in case it crashes.
    """

    name: str
    config: TrainConfig
    data: DataRecord
    shards: str
    commit: str
    hardware: str
    world_size: int
    epochs: tuple[EpochRecord, ...]
    evaluation: Evaluation | None
    seconds: float
    last: str = ""
    best: str = ""
    before: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    cache: CacheRecord | None = None
    window_mib: float | None = None
    teachers: tuple[str, ...] = ()

    @property
    def images_per_step(self) -> int:
        """Count the images of one step, over all ranks."""
        return self.config.images_per_rank * self.world_size

    @property
    def checkpoints(self) -> frozenset[str]:
        """The SHA-256 of each checkpoint that may be in the run's folder."""
        return frozenset((self.last, self.best, *self.before)) - {""}

    def save(self, path: Path) -> None:
        """Write the record."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        write_file(path, msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n")


def load_record(path: Path) -> RunRecord:
    """Read a run's record.

    Raises:
        CheckpointError: If there is none or it is damaged.
    """
    try:
        return _record(msgspec.json.decode(path.read_bytes()))
    except FileNotFoundError:
        raise CheckpointError(
            f"a run must have a record; got none at {path}. "
            "Name the folder of a run, or train one: srp-train from SHARDS"
        ) from None
    except ConfigError as error:
        raise CheckpointError(f"{error} It is in {path}.") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"a run's record must be whole; got {type(error).__name__}: {error} in {path}. "
            "Delete the run's folder and train it again."
        ) from error


def _record(fields: dict[str, Any]) -> RunRecord:
    if fields.pop("format") != FORMAT:
        raise ValueError("unknown format")
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(RunRecord)}:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    if "top1_oracle" in (evaluation := fields["evaluation"] or {}):  # its name in earlier versions
        evaluation["top1_any_right"] = evaluation.pop("top1_oracle")
    config = config_from_json(fields["config"])
    return msgspec.convert({**fields, "config": config}, RunRecord, from_attributes=True)


def config_from_json(fields: dict[str, Any]) -> TrainConfig:
    """Read a config as a record has it.

    What the policy or the schedule does not use is dropped: it decided nothing, and was once
    accepted.

    Raises:
        ConfigError: If a field is not known or cannot work.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    policy, sched = fields.get("policy", TrainConfig.policy), fields.get("sched", TrainConfig.sched)
    used = {
        name: value
        for name, value in fields.items()
        if policy in policies_using(name) and sched in schedules_using(name)
    }
    try:
        if unknown := fields.keys() - known:
            raise ConfigError(f"no option is called {', '.join(map(repr, sorted(unknown)))}")
        return msgspec.convert(used, TrainConfig)
    except (ConfigError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"a run's config must fit this version of srp; got {error}. "
            "Train the run again, or use the version that wrote it."
        ) from error


def run_options(record: RunRecord) -> str:
    """Write the options that train a run again, as TOML for `srp-train from SHARDS -c`.

    They are those that decided something; of the machine's, only what is not the default.
    """
    config = record.config
    decided = {
        name: value
        for name, value in vars(config).items()
        if config.policy in policies_using(name)
        and config.sched in schedules_using(name)
        and (name not in NEEDS or getattr(config, NEEDS[name]))
        and (name not in MACHINE_FIELDS or value != getattr(TrainConfig, name))
    }
    heading = (
        f"srp-train from SHARDS -c {OPTIONS}",
        f"SHARDS were {record.shards}, with the fingerprint {record.data.fingerprint}.",
        f"Trained by srp, commit {record.commit}, on {record.hardware}.",
    )
    return options_text(decided, heading)


def current_commit() -> str:
    """Name the commit of srp's working tree, with `+` where it had changes."""
    here = Path(__file__).resolve().parents[1]
    try:
        if Path(_git(here, "rev-parse", "--show-toplevel")) != here.parent:
            return "unknown"  # installed inside some other project's repository
        head = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 fixed words
    return done.stdout.strip()


def describe_hardware(device: torch.device) -> str:
    """Say what computes, with the versions that decide its speed."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        name = cpu_capabilities().get("cpu_name") or platform.machine()
        place = f"{name}, {torch.get_num_threads()} threads"
    return f"{place}, torch {torch.__version__}, {platform.system()}"


def changed_options(
    one: TrainConfig, other: TrainConfig, *, but: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """List the options in which two configs differ, except those that change no figure.

    Args:
        one: Whose value comes first.
        other: Whose value comes second.
        but: Further fields that may differ.

    Returns:
        Each option as it is typed, and its two values.
    """
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if name not in (*MACHINE_FIELDS, *but) and not _is_same(name, value, theirs):
            yield f"--{name.replace('_', '-')}", value, theirs


def _is_same(name: str, one: Any, other: Any) -> bool:
    if name == "initial_checkpoint" and one and other:  # one place has many spellings
        return Path(one).resolve() == Path(other).resolve()
    if name == "kd_model":
        return [Path(each).resolve() for each in one] == [Path(each).resolve() for each in other]
    return bool(one == other)
