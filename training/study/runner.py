"""Run a study: every arm of a profile once with each seed, resumed where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from pipeline.common.settings import check_range
from training.choose.distill import distill
from training.choose.fit_proposer import count_fitted
from training.choose.method import ALL_STAGES, FITTED, FORWARD, stage_costs, train
from training.config import MOST_EPOCHS, MOST_SEED, DistillConfig, TrainConfig
from training.data.processes import Process, require_one
from training.model.classifier import candidate_indices
from training.model.policies import POLICIES
from training.run.folder import RunPaths
from training.run.record import RunRecord
from training.study.arms import BEGUN_LR
from training.study.profiles import PlannedArm, Profile


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One arm with one seed.

    Attributes:
        name: Name of the run's folder.
        config: What to train.
        cost: About how many images pass the classifier forwards and backwards.
        distilled: How to fit a proposer to the classifier of `base`; None trains `config`.
        base: Name of the run whose networks it begins with, if any.
    """

    name: str
    config: TrainConfig
    cost: int
    distilled: DistillConfig | None = None
    base: str | None = None


def plan_runs(
    profile: Profile,
    shards: ShardFolder,
    *,
    device: str,
    workers: int,
    arms: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    epochs: int | None = None,
    initial_checkpoint: str = "",
) -> list[PlannedRun]:
    """List every run, all arms of one seed before the next seed.

    Args:
        profile: Arms and seeds.
        shards: To train on.
        device: See `TrainConfig`.
        workers: See `TrainConfig`.
        arms: Names of those to run; those that they need are run as well. None takes all.
        seeds: Each arm is run once with each; None takes the profile's.
        epochs: Epochs of one round; None takes the profile's.
        initial_checkpoint: Whose classifier every run begins with, at a lower learning rate;
            `{seed}` in it stands for the run's seed.

    Raises:
        ConfigError: If there is no such arm or seed, the shards lack candidates, or they are too
            small for the profile's glimpses.
    """
    check_range("--seeds", seeds, 0, MOST_SEED)
    check_range("--epochs", epochs, 1, MOST_EPOCHS)
    round_epochs = epochs or profile.epochs
    runs = []
    for seed in seeds or profile.seeds:
        for arm in (profile.only(arms) if arms else profile).arms:
            count = arm.rounds * round_epochs
            config = replace(
                arm.config,
                epochs=count,
                val_interval=max(1, count // profile.evaluations),
                lr=min(arm.config.lr, BEGUN_LR) if initial_checkpoint else arm.config.lr,
                initial_checkpoint=initial_checkpoint.replace("{seed}", str(seed)),
                seed=seed,
                device=device,
                workers=workers,
            )
            runs.append(_run(arm, config, shards))
    return runs


def _run(arm: PlannedArm, config: TrainConfig, shards: ShardFolder) -> PlannedRun:
    wanted = arm.distilled and replace(arm.distilled, seed=config.seed)
    base = arm.base and f"{arm.base}-s{config.seed}"
    _check_fits(wanted or config, shards)
    num_train, num_val = (shards.manifest.num_samples(split) for split in ("train", "val"))
    num_crops = len(candidate_indices(config, shards.crop_layout))
    name = f"{arm.name}-s{config.seed}"
    if wanted is not None:
        cost = round(count_fitted(wanted, num_train) / FITTED)
        return PlannedRun(name=name, config=config, cost=cost, distilled=wanted, base=base)
    if POLICIES[config.policy].is_fitted:
        cost = round(sum(stage_costs(config, shards).values()))
        return PlannedRun(name=name, config=config, cost=cost, base=base)
    shown = config.num_draws or num_crops if POLICIES[config.policy].weighs_all else 1
    trained = shown * config.epochs * num_train
    scored = num_crops * num_val // FORWARD
    return PlannedRun(name=name, config=config, cost=trained + scored, base=base)


def _check_fits(config: TrainConfig | DistillConfig, shards: ShardFolder) -> None:
    shards.crop_layout.indices(config.candidates or shards.manifest.spec.candidates)
    crop_px = shards.manifest.spec.crop_size
    if (config.glimpse_size or 0) > crop_px:
        raise ConfigError(
            f"--profile must fit the shards; got glimpses of {config.glimpse_size} px for crops "
            f"of {crop_px} px in {shards.place}. Build shards with a larger --crop-size, or "
            "choose a smaller profile."
        )


class StudyProgress(Progress):
    """Forwards the progress of runs, and shows the study's, weighted by their cost."""

    def __init__(self, progress: Progress, runs: Sequence[PlannedRun]) -> None:
        """Show the first run as the next."""
        self._progress, self._runs, self._position = progress, runs, 0

    def begin(self, position: int) -> None:
        """Announce the next run."""
        self._position = position
        name, number, total = self._runs[position].name, position + 1, len(self._runs)
        self._move(0.0)
        text = f"run {number}/{total}: {name}"
        self._progress.event("run", text, name=name, position=number, total=total)

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Forward it; training also advances the study."""
        self._progress.update(stage, done, total, figures)
        if stage in ("training", ALL_STAGES) and self._runs[self._position].distilled is None:
            self._move(done / total)

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        """Forward it."""
        self._progress.event(name, text, **fields)

    def _move(self, share: float) -> None:
        run, total = self._runs[self._position], sum(run.cost for run in self._runs)
        before = sum(run.cost for run in self._runs[: self._position])
        self._progress.update("study", round(before + share * run.cost), total, run.name)


def run_study(
    runs: list[PlannedRun],
    *,
    shards: ShardFolder,
    output: Path,
    process: Process,
    progress: Progress = SILENT,
) -> list[RunRecord]:
    """Train and evaluate the runs that are not finished yet, in order.

    Args:
        runs: From `plan_runs`.
        shards: To train on.
        output: Each run gets a folder there.
        process: This one.
        progress: Shows the runs, their images and epochs.

    Returns:
        Every run's record.

    Raises:
        ConfigError: If several processes would have to fit a proposer.
        DivergedError: After the last run, if the loss of any stopped being a number.
    """
    is_fitted = {run.name for run in runs if RunPaths(folder=output / run.name).record.exists()}
    if any(run.distilled is not None and run.name not in is_fitted for run in runs):
        require_one(process, "a study that fits proposers")
    shown = StudyProgress(progress, runs)
    records = []
    failed: dict[str, str] = {}
    for position, run in enumerate(runs):
        if run.base in failed:
            failed[run.name] = f"skipped, since {run.base} is not finished"
            continue
        shown.begin(position)
        try:
            records.append(
                _finish(
                    run, shards=shards, output=output, process=process,
                    progress=shown,
                )
            )  # fmt: skip
        except DivergedError as error:  # one arm's failure is a result; the others go on
            failed[run.name] = str(error)
    if failed:
        failures = " | ".join(f"{name} ({why})" for name, why in failed.items())
        raise DivergedError(
            f"{len(failed)} of {len(runs)} runs diverged, or needed one that diverged: {failures} "
            f"The other runs are finished, in {output}."
        )
    return records


def _finish(
    run: PlannedRun,
    *,
    shards: ShardFolder,
    output: Path,
    process: Process,
    progress: Progress,
) -> RunRecord:
    paths = RunPaths(folder=output / run.name)
    if run.distilled is None or run.base is None:
        config = run.config
        if run.base is not None:
            config = replace(config, initial_checkpoint=str(output / run.base))
        return train(
            config, shards=shards, paths=paths, process=process, resume=True,
            progress=progress,
        )  # fmt: skip
    return distill(
        RunPaths(folder=output / run.base), run.distilled, shards=shards, paths=paths,
        process=process, workers=run.config.workers, resume=True,
        progress=progress,
    )  # fmt: skip
