"""Run a study: every arm of a profile once with each seed, resumed where it stopped."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline import ShardFolder
from pipeline.command.settings import check_range
from pipeline.common.errors import ConfigError, DivergedError
from pipeline.common.progress import SILENT, Progress
from training.choose.config import DistillConfig
from training.choose.distill import distill, judge
from training.choose.fit_proposer import FITTING, count_fitted
from training.choose.method import (
    FITTED,
    FORWARD,
    Counts,
    fold_costs,
    settled,
    stage_costs,
    train,
)
from training.config import MOST_EPOCHS, MOST_SEED, TrainConfig
from training.data.processes import Process, require_one
from training.model.policies import POLICIES
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.classify import SCORING
from training.study.arms import BEGUN_LR
from training.study.jobs import Work, count_jobs, run_jobs
from training.study.planned import (
    TRAINING,
    PlannedRun,
    Queue,
    StudyProgress,
    most_expensive_first,
)
from training.study.profiles import PlannedArm, Profile

MIXED = 1.25  # one image made of all crops costs as much as so many; crops of 64 px, ResNet18


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
            `{seed}` and `{arm}` in it stand for the run's.

    Raises:
        ConfigError: If there is no such arm or seed, the shards lack candidates, or they are too
            small for the profile's glimpses.
    """
    check_range("--seeds", seeds, 0, MOST_SEED)
    check_range("--epochs", epochs, 1, MOST_EPOCHS)
    round_epochs = epochs or profile.epochs
    runs = []
    planned = (profile.only(arms) if arms else profile).arms
    judged = {arm.base for arm in planned if arm.distilled is not None}
    for seed in seeds or profile.seeds:
        for arm in planned:
            source = initial_checkpoint.replace("{seed}", str(seed)).replace("{arm}", arm.name)
            count = arm.rounds * round_epochs
            config = replace(
                arm.config,
                epochs=count,
                val_interval=max(1, count // profile.evaluations),
                batch_size=profile.batch_size,
                lr=min(arm.config.lr, BEGUN_LR) if initial_checkpoint else arm.config.lr,
                initial_checkpoint=source,
                seed=seed,
                device=device,
                workers=workers,
            )
            runs.append(_run(arm, settled(config), shards, is_judged=arm.name in judged))
    return runs


def _run(
    arm: PlannedArm, config: TrainConfig, shards: ShardFolder, *, is_judged: bool
) -> PlannedRun:
    wanted = arm.distilled and replace(arm.distilled, seed=config.seed)
    _check_fits(wanted or config, shards)
    counts = Counts.of(config, shards)
    return PlannedRun(
        name=f"{arm.name}-s{config.seed}",
        config=config,
        costs=run_costs(wanted or config, counts)
        | (fold_costs(config, counts) if is_judged else {}),
        distilled=wanted,
        base=arm.base and f"{arm.base}-s{config.seed}",
        is_judged=is_judged,
    )


def run_costs(config: TrainConfig | DistillConfig, counts: Counts) -> dict[str, float]:
    """Estimate what each stage of a run costs, in images that are trained on, by its name.

    Args:
        config: How its classifier is trained, or how a proposer is fitted to it.
        counts: Of its data.
    """
    if isinstance(config, DistillConfig):
        return {FITTING: count_fitted(config, counts.num_train) / FITTED}
    policy = POLICIES[config.policy]
    if policy.is_fitted:
        return stage_costs(config, counts)
    shown: float = config.num_draws or counts.num_crops if policy.weighs_all else 1
    if policy.looks and not policy.weighs_all and not policy.takes_one:
        shown = MIXED
    return {
        TRAINING: shown * config.epochs * counts.num_train,
        SCORING: counts.num_crops * counts.num_val / FORWARD,
    }


def _check_fits(config: TrainConfig | DistillConfig, shards: ShardFolder) -> None:
    shards.crop_layout.indices(config.candidates or shards.manifest.spec.candidates)
    crop_px = shards.manifest.spec.crop_size
    if (config.glimpse_size or 0) > crop_px:
        raise ConfigError(
            f"--profile must fit the shards; got glimpses of {config.glimpse_size} px for crops "
            f"of {crop_px} px in {shards.place}. Build shards with a larger --crop-size, or "
            "choose a smaller profile."
        )


def run_study(
    runs: Sequence[PlannedRun],
    *,
    shards: ShardFolder,
    output: Path,
    process: Process,
    jobs: int | None = 1,
    progress: Progress = SILENT,
) -> list[RunRecord]:
    """Train and evaluate the runs that are not finished yet.

    On a CPU the figures of a run depend on torch's number of threads, in the last digits: a job
    has its share of the CPUs. For the same `jobs`, those of a broken and an unbroken study agree.

    Args:
        runs: From `plan_runs`.
        shards: To train on.
        output: Each run gets a folder there.
        process: This one. It trains the runs itself, in order, if there is one job.
        jobs: Number of runs that are trained side by side; None takes that of `count_jobs`.
        progress: Shows the runs.

    Returns:
        Every run's record.

    Raises:
        ConfigError: If several processes would have to fit a proposer, or have several jobs.
        DivergedError: After the last run, if the loss of any stopped being a number.
    """
    is_fitted = {run.name for run in runs if RunPaths(folder=output / run.name).record.exists()}
    judged = {run.base for run in runs if run.distilled is not None and run.name not in is_fitted}
    if judged:
        require_one(process, "a study that fits proposers")
    num_jobs = count_jobs(runs, process, wanted=jobs)
    if num_jobs > 1:
        require_one(process, "a study with several --jobs")
    runs = [_prepared(run, num_jobs=num_jobs, is_judged=run.name in judged) for run in runs]
    shown = StudyProgress(progress, runs)
    queue = Queue(runs if num_jobs == 1 else most_expensive_first(runs), shown)
    work = partial(_finish, shards=shards, output=output)
    while num_jobs == 1 and queue.ready:
        _work_here(queue, queue.ready[0], work, process)
    if num_jobs > 1:
        for run in runs:
            if _is_finished(run, output):  # which takes no worker
                _work_here(queue, run, work, process)
        run_jobs(queue, work, jobs=num_jobs, shown=shown)
    if queue.failed:
        why = " | ".join(
            f"{run.name} ({queue.failed[run.name]})" for run in runs if run.name in queue.failed
        )
        raise DivergedError(
            f"{len(queue.failed)} of {len(runs)} runs diverged, or needed one that diverged: {why} "
            f"The other runs are finished, in {output}."
        )
    return [queue.records[run.name] for run in runs]


def _prepared(run: PlannedRun, *, num_jobs: int, is_judged: bool) -> PlannedRun:
    """Give a run its share of the reading threads; logits that nothing is fitted to stay unmade."""
    config = replace(run.config, workers=max(1, run.config.workers // num_jobs))
    return replace(run, config=config, is_judged=is_judged)


def _is_finished(run: PlannedRun, output: Path) -> bool:
    path = RunPaths(folder=output / run.name).record
    return not run.is_judged and path.exists() and load_record(path).evaluation is not None


def _work_here(queue: Queue, run: PlannedRun, work: Work, process: Process) -> None:
    """Train a run in this process."""
    shown = queue.begin(run)
    try:
        queue.finish(run, work(run, process=process, progress=shown))
    except DivergedError as error:  # one arm's failure is a result; the others go on
        queue.fail(run, error)


def _finish(
    run: PlannedRun,
    *,
    shards: ShardFolder,
    output: Path,
    process: Process,
    progress: Progress,
) -> RunRecord:
    """Train a run, or what is left of it; `jobs` calls this in its workers."""
    paths = RunPaths(folder=output / run.name)
    if run.distilled is not None and run.base is not None:
        return distill(
            RunPaths(folder=output / run.base), run.distilled, shards=shards, paths=paths,
            process=process, workers=run.config.workers, resume=True,
            progress=progress,
        )  # fmt: skip
    config = run.config
    if run.base is not None:
        config = replace(config, initial_checkpoint=str(output / run.base))
    record = train(
        config, shards=shards, paths=paths, process=process, resume=True,
        progress=progress,
    )  # fmt: skip
    if run.is_judged:
        judge(paths, shards=shards, process=process, workers=config.workers, progress=progress)
    return record
