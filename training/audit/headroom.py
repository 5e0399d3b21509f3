"""How much choosing a crop could gain, from two small classifiers: `srp-train headroom SHARDS`.

Each classifier has learnt from random crops of one half of the training split. The *room* is the
accuracy of an oracle minus that of the best fixed crop. The oracle takes the crop on which one
classifier loses least, scored by the other, so that the scored classifier is not favoured. It knows
the label, so most of the room may be out of reach. The *gain* is what a proposer reaches that was
fitted to the out-of-fold losses and knows no label of the images that it chooses on.

Axes: 2 classifiers, N samples of the validation split, K candidates, D differences.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from training.audit.config import HeadroomConfig
from training.choose.config import DistillConfig
from training.choose.distill import distilled_config
from training.choose.fit_proposer import FITTING, count_fitted, fit_to_losses
from training.choose.method import FITTED, FORWARD
from training.choose.out_of_fold import JUDGING, out_of_fold_logits
from training.config import FOLDS, TrainConfig
from training.data.processes import Process, require_one
from training.model.classifier import candidate_indices
from training.run.state import build_model, smallest_half
from training.run.train import fit
from training.saved.folder import RunPaths, held_run
from training.score.choices import choices_of
from training.score.classify import SCORING
from training.score.crop_logits import CropLogits
from training.study.finished import Arm, Spread
from training.study.paired import COVERED
from training.study.planned import TRAINING, PlannedRun, StudyProgress

RESAMPLES = 2000
# Share of the errors of always naming the largest class that the classifiers must avoid: below it,
# their losses are mostly noise to a proposer.
LEAST_LEARNT = 0.1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """A difference in top-1, points, and the ends of its 95 % bootstrap interval over images."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} points (95 % {self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """The result of an estimate; accuracies are top-1, %, means of both classifiers.

    Attributes:
        crops: Names of the K candidates.
        num_samples: Images of the validation split.
        top1_largest: Accuracy of always naming the most frequent class.
        top1_random: Accuracy on a random crop, the exact expectation.
        top1_crops: Accuracy on each candidate.
        top1_fixed: Accuracy on the best candidate, picked for each classifier by the other.
        top1_mean: Accuracy of the mean probability over all crops, K times the compute.
        top1_fitted: Accuracy on the crop that the fitted proposer chooses.
        top1_oracle: Accuracy on the crop on which the other classifier loses least.
        top1_any_right: Share of the images with any crop right, known in hindsight alone.
        learnt: Mean of all crops minus the most frequent class.
        room: Oracle minus the best fixed crop.
        gain: Fitted proposer minus the best fixed crop.
    """

    crops: tuple[str, ...]
    num_samples: int
    top1_largest: float
    top1_random: float
    top1_crops: tuple[float, ...]
    top1_fixed: float
    top1_mean: float
    top1_fitted: float
    top1_oracle: float
    top1_any_right: float
    learnt: Gain
    room: Gain
    gain: Gain

    @property
    def verdict(self) -> str:
        """Say in one line whether choosing can be worth a training."""
        if self.learnt.low < self.least_top1 - self.top1_largest:
            return (
                "No answer: the small classifiers have learnt too little. The mean of all crops is "
                f"right on {self.top1_mean:.1f} % of the images vs {self.top1_largest:.1f} % for "
                "always naming the largest class; its 95 % interval must start at "
                f"{self.least_top1:.1f} % or more. Raise --epochs or --limit, or use another "
                "--model."
            )
        room = f"room: {self.room} vs the best fixed crop, for an oracle that knows the label"
        if self.room.high <= 0:
            return f"{room}. Choosing is not worth a training: even that oracle gains nothing."
        if self.room.low <= 0:
            return (
                f"{room}. Choosing is not shown to be worth a training: even that room can be "
                f"chance, and it is at most {self.room.high:.1f} points."
            )
        fitted = f"a proposer fitted to the classifiers' losses gains {self.gain}"
        if self.gain.low <= 0:
            return (
                f"{room}; {fitted}, so none of it is shown to be in reach. Choosing is not shown "
                "to be worth a training."
            )
        return f"{room}; {fitted}. Choosing can be worth it."

    @property
    def least_top1(self) -> float:
        """The accuracy at which the interval of the mean of all crops must start, %."""
        return self.top1_largest + LEAST_LEARNT * (100 - self.top1_largest)

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs, the verdict first."""
        return {"verdict": self.verdict, **msgspec.to_builtins(self)}


def headroom(
    classified: tuple[CropLogits, CropLogits],
    crops: Sequence[str],
    fitted_N: NDArray[np.int64],
    *,
    seed: int,
) -> Headroom:
    """Compare ways to choose, image by image.

    Args:
        classified: Logits of two classifiers on samples that neither has learnt from.
        crops: Names of the candidates.
        fitted_N: Index of the crop that the fitted proposer chooses for each sample.
        seed: Seed of the resamples.
    """
    right_2NK = np.stack([logits.right_NK.numpy() for logits in classified])
    least_2N = np.stack([logits.losses_NK.argmin(1).numpy() for logits in classified])
    best_2N = np.broadcast_to(right_2NK.sum(1).argmax(1)[:, None], least_2N.shape)
    labels_N = classified[0].labels_N.numpy()
    averaged_2N = np.stack([logits.averaged_N.numpy() for logits in classified])
    largest_N = (labels_N == np.bincount(labels_N).argmax()).astype(float)
    mean_N = (averaged_2N == labels_N).mean(0)
    fixed_N = _score(right_2NK, best_2N[::-1])
    oracle_N = _score(right_2NK, least_2N[::-1])
    chosen_N = _score(right_2NK, np.stack([fitted_N, fitted_N]))
    learnt, room, gain = bootstrap(
        np.stack([mean_N - largest_N, oracle_N - fixed_N, chosen_N - fixed_N], 1), seed=seed
    )
    return Headroom(
        crops=tuple(crops),
        num_samples=len(labels_N),
        top1_largest=_percent(largest_N),
        top1_random=_percent(right_2NK.mean((0, 2))),
        top1_crops=tuple((100 * right_2NK.mean((0, 1))).tolist()),
        top1_fixed=_percent(fixed_N),
        top1_mean=_percent(mean_N),
        top1_fitted=_percent(chosen_N),
        top1_oracle=_percent(oracle_N),
        top1_any_right=_percent(right_2NK.any(2).mean(0)),
        learnt=learnt,
        room=room,
        gain=gain,
    )


def _score(right_2NK: NDArray[np.bool_], chosen_2N: NDArray[np.int64]) -> Floats:
    """Give the share of the two classifiers that are right on their chosen crops, `(N,)`."""
    scores_N: Floats = np.take_along_axis(right_2NK, chosen_2N[:, :, None], 2)[:, :, 0].mean(0)
    return scores_N


def _percent(scores_N: Floats) -> float:
    return 100 * float(scores_N.mean())


def bootstrap(differences_ND: Floats, *, seed: int) -> list[Gain]:
    """Give the mean of each column, points, and its 95 % interval over samples.

    The columns share their resamples. Differences are paired: what an image adds to both sides
    cancels out first.

    Args:
        differences_ND: Differences of scores, -1 to 1.
        seed: Seed of the resamples.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3, percentiles.
    """
    generator = np.random.default_rng(seed)
    count = len(differences_ND)
    means_RD = np.stack([
        differences_ND[generator.integers(count, size=count)].mean(0) for _ in range(RESAMPLES)
    ])  # fmt: skip
    low_D, high_D = 100 * np.percentile(means_RD, COVERED, axis=0)
    points_D = 100 * differences_ND.mean(0)
    return [Gain(*map(float, ends)) for ends in zip(points_D, low_D, high_D, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a finished training that chooses showed; top-1, %, over its seeds.

    Attributes:
        arm: Name of the arm.
        seeds: Seeds of its runs.
        crops: Names of its candidates, which may differ from those of an estimate.
        fixed: Accuracy on the best fixed crop, picked on the images that are scored, which
            makes it too high.
        chosen: Accuracy on the chosen crop.
        oracle: Accuracy on another seed's crop of least loss; None for one seed.
        any_right: Share of the images with any crop right, in hindsight.
    """

    arm: str
    seeds: tuple[int, ...]
    crops: tuple[str, ...]
    fixed: Spread
    chosen: Spread
    oracle: Spread | None
    any_right: Spread


def shown_by(arms: Iterable[Arm]) -> list[Shown]:
    """List what finished arms that choose showed; arms without logits are skipped."""
    return [
        Shown(
            arm=arm.name, seeds=arm.seeds, crops=arm.crops, fixed=arm.top1_fixed, chosen=arm.top1,
            oracle=arm.top1_oracle, any_right=arm.top1_any_right,
        )
        for arm in arms
        if arm.config.selects and all(run.logits is not None for run in arm.runs)
    ]  # fmt: skip


def plan_parts(
    wanted: HeadroomConfig, shards: ShardFolder, *, workers: int, device: str
) -> tuple[PlannedRun, ...]:
    """List what is trained: a classifier for each half of the training split, then the proposer.

    Raises:
        ConfigError: If the shards hold too few images or crops for it.
    """
    num_train, num_val = (shards.manifest.num_samples(split) for split in ("train", "val"))
    base = TrainConfig(
        policy="random", candidates=wanted.candidates, model=wanted.model, epochs=wanted.epochs,
        batch_size=wanted.batch_size, lr=wanted.lr, val_interval=wanted.epochs, workers=workers,
        device=device,
    )  # fmt: skip
    _check_images(wanted, shards)
    num_crops = _count_crops(base, shards)
    halves = [
        PlannedRun(
            name=f"half-{half}",
            config=replace(base, fold=half, seed=wanted.seed + half),
            costs={
                TRAINING: wanted.epochs * (num_train // FOLDS),
                SCORING: num_crops * num_val / FORWARD,
            },
        )
        for half in range(FOLDS)
    ]
    fitted = DistillConfig(
        proposer="map" if "full" in shards.crop_layout.names else "crops",
        position_prior=True,
        seed=wanted.seed,
    )
    proposer = distilled_config(base, fitted)
    return (
        *halves,
        PlannedRun(
            name="proposer",
            config=proposer,
            costs={
                **dict.fromkeys(JUDGING, num_crops * num_train / FOLDS / FORWARD),
                FITTING: count_fitted(fitted, num_train) / FITTED,
            },
            distilled=fitted,
        ),
    )


def _check_images(wanted: HeadroomConfig, shards: ShardFolder) -> None:
    num_train = shards.manifest.num_samples("train")
    most = smallest_half(shards)
    if most < wanted.batch_size:
        raise ConfigError(
            f"each half of the training images must fill a batch; got --batch-size "
            f"{wanted.batch_size} for {num_train} images in {shards.place}. "
            f"{f'Lower --batch-size to {most}' if most > 1 else 'Take more images'}, and leave "
            "--limit out if it is given."
        )
    shards.reader("val")  # which must hold images


def _count_crops(config: TrainConfig, shards: ShardFolder) -> int:
    chosen = candidate_indices(config, shards.crop_layout)
    if len(chosen) < 2:
        raise ConfigError(
            "an estimate needs at least two candidates to choose among; got "
            f"{', '.join(shards.crop_layout.names[k] for k in chosen)} in {shards.place}. "
            "Name more in --candidates, or build shards with --candidates full+five."
        )
    return len(chosen)


def work_folder(output: Path, wanted: HeadroomConfig, shards: ShardFolder) -> Path:
    """Name the folder of one estimate: the same options on the same shards have the same one.

    It lies one level deeper than runs, so that no report takes its parts for runs.
    """
    kind = "halves by key"  # of an estimate by an earlier version nothing may be reused
    asked = json.dumps([asdict(wanted), shards.manifest.fingerprint, kind], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    return output / "headroom" / f"{Path(wanted.model).name}-{digest}"


def estimate_headroom(
    parts: tuple[PlannedRun, ...],
    *,
    shards: ShardFolder,
    folder: Path,
    process: Process,
    progress: Progress = SILENT,
) -> Headroom:
    """Train the parts that are not finished yet, and compare ways to choose.

    Args:
        parts: From `plan_parts`.
        shards: That they were planned for.
        folder: Where the parts go, each to a folder of its own.
        process: The only one.
        progress: Shows the parts, their images and epochs.

    Raises:
        ConfigError: If there is no such classifier, or there are several processes.
        DivergedError: If a loss stopped being a number.
    """
    require_one(process, "an estimate")
    *halves, proposer = parts
    if proposer.distilled is None:
        raise RuntimeError("a last part that is not fitted")
    chooser = build_model(proposer.config, shards, process)  # fails before anything is trained
    shown = StudyProgress(progress, parts)
    folds = [RunPaths(folder=folder / half.name) for half in halves]
    classified = []
    for half, paths in zip(halves, folds, strict=True):
        own = shown.begin(half)
        classified.append(_classified(half, paths, shards=shards, process=process, progress=own))
        shown.end(half.name)
    first, second = classified
    own = shown.begin(proposer)
    home = RunPaths(folder=folder)
    is_read = home.out_of_fold.exists()
    with contextlib.nullcontext() if is_read else held_run(home, process):
        unseen = out_of_fold_logits(
            home.out_of_fold, folds, halves[0].config, shards=shards, process=process,
            progress=own,
        )  # fmt: skip
    try:
        fit_to_losses(
            chooser, unseen.losses_NK, proposer.distilled, shards=shards, process=process,
            progress=own,
        )  # fmt: skip
    except DivergedError as error:
        fix = f"The classifiers are kept, in {folder}. Use a lower --lr, or another --seed."
        raise DivergedError(f"{error} {fix}") from error
    shown.end(proposer.name)
    chosen_N = choices_of(chooser, shards, process, split="val").argmax(1).numpy()
    return headroom((first, second), chooser.names, chosen_N, seed=proposer.config.seed)


def _classified(
    half: PlannedRun, paths: RunPaths, *, shards: ShardFolder, process: Process, progress: Progress
) -> CropLogits:
    """Train the classifier of one half, unless it is finished; gives its validation logits."""
    try:
        record = fit(
            half.config, shards=shards, paths=paths, process=process, resume=True, progress=progress
        )
    except DivergedError as error:
        raise DivergedError(
            f"a small classifier must learn; got a loss or weights that are not finite in "
            f"{paths.folder}. Use a --lr below {half.config.lr}."
        ) from error
    return CropLogits.load(paths.logits, weights=(record.last,))
