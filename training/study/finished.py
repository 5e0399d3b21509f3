"""Finished runs of a folder -> arms, with means and spreads over their seeds.

An arm is what was run with several seeds: runs of one config but for the seed.
"""

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import ConfigError
from training.config import MACHINE_FIELDS, TrainConfig
from training.model.policies import POLICIES
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.crop_logits import CropLogits
from training.score.metrics import Evaluation

FREE_OPTIONS = ("seed", *MACHINE_FIELDS)  # they may differ within an arm
SEED_SUFFIX = re.compile(r"-s(\d+)$")


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds of an arm; `sd` is the sample's, None for one seed."""

    mean: float
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run.

    `folder` may have another name than its record: folders are renamed. `logits` is None where its
    file is gone.
    """

    folder: Path
    record: RunRecord
    evaluation: Evaluation
    logits: CropLogits | None

    def skill(self, ceiling: float) -> float | None:
        """Selection skill, (chosen - random) / (ceiling - random): 0 is chance, 1 the ceiling.

        All three are of one classifier; None where the ceiling is not above random.
        """
        done = self.evaluation
        room = ceiling - done.top1_random
        if not self.record.config.selects or room <= 0:
            return None
        return (done.top1 - done.top1_random) / room


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Finished runs that differ only in their seeds, in order of the seeds."""

    name: str
    runs: tuple[FinishedRun, ...]

    @property
    def config(self) -> TrainConfig:
        """The options that all runs share, with the first run's seed."""
        return self.runs[0].record.config

    @property
    def policy(self) -> str:
        """Name of the policy."""
        return self.config.policy

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each run."""
        return tuple(run.record.config.seed for run in self.runs)

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """One for each run."""
        return tuple(run.evaluation for run in self.runs)

    @property
    def family(self) -> str:
        """The name without the glimpse size, which names a line over glimpse sizes."""
        return self.name.removesuffix(f"-g{self.glimpse_px}")

    @property
    def glimpse_px(self) -> int | None:
        """Side of the glimpses, px; None for policies without a proposer."""
        stored = self.runs[0].record.data.spec.glimpse_size
        return (self.config.glimpse_size or stored) if self.config.selects else None

    @property
    def top1(self) -> Spread:
        """Top-1 of the policy itself, %."""
        return spread(done.top1 for done in self.evaluations)

    @property
    def top1_random(self) -> Spread:
        """Top-1 of a crop drawn uniformly, %."""
        return spread(done.top1_random for done in self.evaluations)

    @property
    def top1_fixed(self) -> Spread:
        """Top-1 of the one crop that is best for the whole split, %."""
        return spread(max(done.top1_crops) for done in self.evaluations)

    @property
    def fixed_crop(self) -> str:
        """Name of that crop, if it is the same with every seed."""
        best = (
            done.crops[done.top1_crops.index(max(done.top1_crops))] for done in self.evaluations
        )
        names = set(best)
        return names.pop() if len(names) == 1 else "varies"

    @property
    def top1_any_right(self) -> Spread:
        """Share of images with any crop right, known in hindsight, %."""
        return spread(done.top1_any_right for done in self.evaluations)

    @property
    def top1_oracle(self) -> Spread | None:
        """Top-1 of the oracle, %: the crop on which another seed's classifier loses least.

        It is split-half: the classifier that chooses does not score, so none is favoured. None
        without a second classifier.
        """
        known = [oracle for _, oracle in self._oracles]
        return spread(known) if known else None

    @property
    def _oracles(self) -> list[tuple[FinishedRun, float]]:
        """Score each run's classifier on the crops of the others' least loss, mean over them."""
        known = [(run, run.logits) for run in self.runs if run.logits is not None]
        found = []
        for run, logits in known:
            scores = [
                100
                * float(logits.right_NK.gather(1, other.losses_NK.argmin(1, True)).double().mean())
                for _, other in known
                if not other.losses_NK.equal(logits.losses_NK)  # seeds may share a classifier
            ]
            if scores:
                found.append((run, statistics.fmean(scores)))
        return found

    @property
    def top1_mean(self) -> Spread:
        """Top-1 of the mean over all crops, %."""
        return spread(done.top1_mean for done in self.evaluations)

    @property
    def skill(self) -> Spread | None:
        """Selection skill against the oracle: (chosen - random) / (oracle - random)."""
        return _known(run.skill(oracle) for run, oracle in self._oracles)

    @property
    def any_right_skill(self) -> Spread | None:
        """Selection skill against any crop right, which needs only one seed."""
        return _known(run.skill(run.evaluation.top1_any_right) for run in self.runs)

    @property
    def proposer_macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.evaluations[0].proposer_macs

    @property
    def classifier_macs(self) -> int:
        """Multiply-accumulates for the crops of one image that the classifier sees."""
        return self.evaluations[0].classifier_macs

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image, proposer and classifier."""
        return self.proposer_macs + self.classifier_macs

    @property
    def images_per_s(self) -> float | None:
        """Median over all training epochs of all runs; None without a training."""
        rates = [epoch.images_per_s for run in self.runs for epoch in run.record.epochs]
        return statistics.median(rates) if rates else None

    @property
    def seconds(self) -> float:
        """Wall time, sum over the runs."""
        return sum(run.record.seconds for run in self.runs)

    @property
    def crops(self) -> tuple[str, ...]:
        """Names of the candidates."""
        return self.evaluations[0].crops

    @property
    def shares(self) -> tuple[float, ...]:
        """How often each crop was chosen, mean over the seeds, 0 to 1."""
        return tuple(
            statistics.fmean(column)
            for column in zip(*(done.shares for done in self.evaluations), strict=True)
        )

    @property
    def entropy_of_mean(self) -> Spread:
        """Entropy of the mean choice, nats: 0 where every image gets the same crop."""
        return spread(done.entropy_of_mean for done in self.evaluations)

    @property
    def most_entropy(self) -> float:
        """Entropy of a uniform choice, nats."""
        return math.log(len(self.crops))

    @property
    def mean_entropy(self) -> Spread:
        """Mean entropy of an image's choice, nats: 0 where the proposer is sure of each image."""
        return spread(done.mean_entropy for done in self.evaluations)

    @property
    def best_run(self) -> FinishedRun:
        """The run with the highest top-1."""
        return max(self.runs, key=lambda run: run.evaluation.top1)


def spread(values: Iterable[float]) -> Spread:
    """Give mean and sample sd (n - 1); one value has no sd."""
    known = list(values)
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), sd)


def _known(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def group_arms(runs: Iterable[FinishedRun]) -> tuple[Arm, ...]:
    """Group finished runs into arms, ordered by policy, family and glimpse size.

    Runs belong together if names and options are equal except for the seed. A copy of a run is not
    another seed: it makes an arm of its own.
    """
    groups: dict[tuple[str, TrainConfig, int], list[FinishedRun]] = {}
    seen: Counter[tuple[str, TrainConfig]] = Counter()
    # The run whose folder has its record's name is the original.
    ordered = sorted(runs, key=lambda run: run.folder.name != run.record.name)
    starts = _starts(ordered)
    for run, start in zip(ordered, starts, strict=True):
        name, config = arm_name(run.record), run.record.config
        copy = seen[name, config]
        seen[name, config] += 1
        groups.setdefault((name, _without_seed(config, start=start), copy), []).append(run)
    names = [name for name, _, _ in groups]
    arms = []
    for number, ((name, _, _), members) in enumerate(groups.items()):
        again = names[:number].count(name)
        by_seed = sorted(members, key=lambda run: run.record.config.seed)
        arms.append(Arm(name=f"{name} ({again + 1})" if again else name, runs=tuple(by_seed)))
    return tuple(sorted(arms, key=_place))


def _place(arm: Arm) -> tuple[int, str, int, str]:
    return list(POLICIES).index(arm.policy), arm.family, arm.glimpse_px or 0, arm.name


def arm_name(record: RunRecord) -> str:
    """Remove the seed from a run's name; a number that is not the run's seed stays.

    So two runs of one seed never count as two seeds.
    """
    found = SEED_SUFFIX.search(record.name)
    if found and int(found[1]) == record.config.seed:
        return record.name[: found.start()]
    return record.name


def _starts(runs: Sequence[FinishedRun]) -> list[str]:
    """Say what each run begins with, the seed removed where each seed begins with its own."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        config = run.record.config
        seeds.setdefault((arm_name(run.record), config.initial_checkpoint), set()).add(config.seed)
    return [
        start
        if len(seeds[arm_name(run.record), start := run.record.config.initial_checkpoint]) > 1
        else start.removesuffix(f"-s{run.record.config.seed}")
        for run in runs
    ]


def _without_seed(config: TrainConfig, *, start: str) -> TrainConfig:
    defaults = {name: getattr(TrainConfig, name) for name in FREE_OPTIONS}
    return dataclasses.replace(config, **defaults, initial_checkpoint=start)


def differing_options(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Name the options that differ between arms, except seed and machine."""
    return tuple(
        field.name
        for field in dataclasses.fields(TrainConfig)
        if field.name not in FREE_OPTIONS
        and len({getattr(arm.config, field.name) for arm in arms}) > 1
    )


def best_arm(arms: Iterable[Arm]) -> Arm | None:
    """Find the arm with the highest mean top-1, the first of equals."""
    return max(arms, key=lambda arm: arm.top1.mean, default=None)


class DataRuns(NamedTuple):
    """The runs of a folder on one data set: only these may be compared.

    `fingerprint` identifies the shards; `name` is their folder's when the first run was trained.
    """

    fingerprint: str
    name: str
    finished: list[FinishedRun]
    unfinished: tuple[RunRecord, ...]


def read_runs(folder: Path) -> tuple[DataRuns, ...]:
    """Read every run in a folder, by data set, in order of the runs' folders.

    Raises:
        ConfigError: If there is none.
        CheckpointError: If a record or logits are damaged.
    """
    records = _read_records(folder)
    if not records:
        raise ConfigError(
            f"a report needs runs; got none in {folder}"
            f"{'' if folder.is_dir() else ', which does not exist'}. "
            f"Train one: srp-train from SHARDS --output {folder}"
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


def read_runs_on(folder: Path, fingerprint: str) -> list[FinishedRun]:
    """Read the finished runs of a folder on these shards, possibly none.

    Args:
        folder: Its subfolders are runs.
        fingerprint: Identifies the shards.

    Raises:
        CheckpointError: If a record or logits are damaged.
    """
    records = _read_records(folder)
    return _finished(
        {path: each for path, each in records.items() if each.data.fingerprint == fingerprint}
    )


def _read_records(folder: Path) -> dict[Path, RunRecord]:
    return {path.parent: load_record(path) for path in sorted(folder.glob("*/record.json"))}


def _finished(records: dict[Path, RunRecord]) -> list[FinishedRun]:
    return [
        FinishedRun(
            folder=run_folder, record=record, evaluation=record.evaluation,
            logits=_read_logits(run_folder, record),
        )
        for run_folder, record in records.items()
        if record.evaluation is not None
    ]  # fmt: skip


def _read_logits(run_folder: Path, record: RunRecord) -> CropLogits | None:
    path = RunPaths(folder=run_folder).logits
    return CropLogits.load(path, weights=(record.last,)) if path.exists() else None
