"""The arms of the comparison, one function each, and the profiles that say how much of it to run.

The question is the predecessor's: does choosing a crop by a small gray glimpse help, and how
small may the glimpse be?
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ConfigError, DivergedError
from training.config import RunPaths, TrainConfig
from training.data import Shards
from training.distributed import Process
from training.loop import OnEpoch, OnProgress, fit
from training.records import RunRecord

FIVE = "five"  # the predecessor's candidates; the whole image is an arm of its own


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much of the study to run.

    Attributes:
        epochs: Of each run.
        seeds: Each arm is run once with each.
        predecessor_glimpses: Sides of the glimpses for the predecessor's arm, px.
        glimpses: The same for the policies that are compared with it, px.
        with_slow: Whether to run the arms that cost several times as much.
    """

    epochs: int
    seeds: tuple[int, ...]
    predecessor_glimpses: tuple[int, ...]
    glimpses: tuple[int, ...]
    with_slow: bool


PROFILES = {
    # The drawn scenes at canvas 96, crop 64: shows that everything works, and no more.
    "smoke": Profile(
        epochs=2, seeds=(0,), predecessor_glimpses=(16,), glimpses=(16,), with_slow=False
    ),
    # Imagenette at canvas 168, crop 112: the full sizes halved.
    "quick": Profile(
        epochs=2, seeds=(0,), predecessor_glimpses=(16, 32, 64, 112), glimpses=(16, 32),
        with_slow=False,
    ),
    # Imagenette at canvas 336, crop 224: the predecessor's own sizes.
    "full": Profile(
        epochs=20, seeds=(0, 1, 2), predecessor_glimpses=(32, 64, 128, 224),
        glimpses=(32, 64, 128, 224), with_slow=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the comparison: a name without its seed, and how to train it."""

    name: str
    config: TrainConfig


def whole() -> TrainConfig:
    """Show the classifier the whole image at the crop's size: what choosing must beat.

    `srp-train from SHARDS --policy whole --candidates full`. Quick profile, Imagenette: 58.3 %
    (1 seed), 3.5 min on two AMD EPYC cores.
    """
    return TrainConfig(policy="whole", candidates="full")


def centre() -> TrainConfig:
    """Show the classifier the centre crop: what choosing must beat among the five.

    `srp-train from SHARDS --policy centre --candidates centre`. Quick profile, Imagenette: 58.2 %
    (1 seed), 3.6 min on two AMD EPYC cores.
    """
    return TrainConfig(policy="centre", candidates="centre")


def random_crop() -> TrainConfig:
    """Show a random crop: the floor of choosing. Its table gives the mean of all five as well.

    `srp-train from SHARDS --policy random --candidates five`. Not measured yet.
    """
    return TrainConfig(policy="random", candidates=FIVE)


def predecessor(glimpse_size: int) -> TrainConfig:
    """Repeat the predecessor: blended crops, padded glimpses, its recipe.

    It differs in what was a fault: no noise at evaluation, and each image decoded once. The
    recipe is timm's of its time: SGD at a constant 0.05 (the first decay was due after epoch
    30), weight decay 2e-5, pixels in 0 to 1 without normalisation.

    `srp-train from SHARDS --policy blend --candidates five --glimpse-size S --pad-glimpses
    --tau-end 1 --lr 0.05 --sched step --weight-decay 2e-5 --shift 0 --mean 0,0,0 --std 1,1,1`.
    Quick profile, Imagenette, S = 16, 32, 64, 112: 42.7, 43.0, 41.7, 25.8 % (1 seed each), 5.0 to
    5.8 min each on two AMD EPYC cores.
    """
    return TrainConfig(
        policy="blend",
        candidates=FIVE,
        glimpse_size=glimpse_size,
        pad_glimpses=True,
        tau_start=1.0,
        tau_end=1.0,
        lr=0.05,
        sched="step",
        weight_decay=2e-5,
        shift=0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def blend(glimpse_size: int) -> TrainConfig:
    """Blend crops as the predecessor did, with the recipe of the other arms.

    `srp-train from SHARDS --policy blend --candidates five --glimpse-size S`. Not measured yet.
    """
    return TrainConfig(policy="blend", candidates=FIVE, glimpse_size=glimpse_size)


def straight_through(glimpse_size: int) -> TrainConfig:
    """Choose one crop in training as at evaluation; the batch is kept from choosing one place.

    `srp-train from SHARDS --policy straight-through --candidates five --glimpse-size S
    --balance 0.1`. Quick profile, Imagenette, S = 16, 32: 52.1, 52.7 % (1 seed each), 4.9 and 4.3
    min on two AMD EPYC cores.
    """
    return TrainConfig(
        policy="straight-through", candidates=FIVE, glimpse_size=glimpse_size, balance=0.1
    )


def expected(glimpse_size: int) -> TrainConfig:
    """Learn from the exact expectation over all five crops; five times the classifier's work.

    `srp-train from SHARDS --policy expected --candidates five --glimpse-size S --balance 0.1`.
    Not measured yet.
    """
    return TrainConfig(policy="expected", candidates=FIVE, glimpse_size=glimpse_size, balance=0.1)


def arms(profile: Profile) -> Iterator[Arm]:
    """List a profile's arms; every name is unique."""
    yield Arm(name="whole", config=whole())
    yield Arm(name="centre", config=centre())
    if profile.with_slow:
        yield Arm(name="random", config=random_crop())
    for side in profile.predecessor_glimpses:
        yield Arm(name=f"predecessor-g{side}", config=predecessor(side))
    for side in profile.glimpses:
        yield Arm(name=f"straight-through-g{side}", config=straight_through(side))
    if profile.with_slow:
        for side in profile.glimpses:
            yield Arm(name=f"blend-g{side}", config=blend(side))
            yield Arm(name=f"expected-g{side}", config=expected(side))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm with one seed.

    Attributes:
        name: Of the run's folder.
        config: What to train.
        cost: Images through the classifier forwards and backwards, about.
    """

    name: str
    config: TrainConfig
    cost: int


def plan_runs(profile: Profile, shards: Shards, *, device: str, workers: int) -> list[Run]:
    """List every run, all arms of one seed before the next seed.

    Raises:
        ConfigError: If the shards are too small for the profile's glimpses.
    """
    runs = []
    for seed in profile.seeds:
        for arm in arms(profile):
            config = replace(
                arm.config,
                epochs=profile.epochs,
                val_interval=max(1, profile.epochs // 10),
                seed=seed,
                device=device,
                workers=workers,
            )
            _check_fits(config, shards)
            num_crops = len(shards.plan.indices(config.candidates or FIVE))
            shown = num_crops if config.policy == "expected" else 1
            trained = shown * profile.epochs * shards.manifest.num_samples("train")
            scored = num_crops * shards.manifest.num_samples("val") // 4  # forwards alone
            runs.append(Run(name=f"{arm.name}-s{seed}", config=config, cost=trained + scored))
    return runs


def _check_fits(config: TrainConfig, shards: Shards) -> None:
    crop_px = shards.manifest.spec.crop_size
    if (config.glimpse_size or 0) > crop_px:
        raise ConfigError(
            f"--profile must fit the shards; got glimpses of {config.glimpse_size} px for crops "
            f"of {crop_px} px in {shards.folder}. Build shards with a larger --crop-size, or "
            "choose a smaller profile."
        )


def run_study(
    runs: list[Run],
    *,
    shards: Shards,
    output: Path,
    process: Process,
    on_run: Callable[[Run, int], tuple[OnProgress, OnEpoch]],
) -> list[RunRecord]:
    """Train and evaluate the runs that are not finished yet, in order.

    Args:
        runs: From `plan_runs`.
        shards: To train on.
        output: Each run gets a folder there.
        process: This one among its peers.
        on_run: Called before each run with its position; gives what to tell of its progress.

    Returns:
        Every run's record.

    Raises:
        DivergedError: After the last run, if the loss of any stopped being a number.
    """
    records, diverged = [], []
    for position, run in enumerate(runs):
        on_progress, on_epoch = on_run(run, position)
        try:
            record = fit(
                run.config,
                shards=shards,
                paths=RunPaths(folder=output / run.name),
                process=process,
                resume=True,
                on_progress=on_progress,
                on_epoch=on_epoch,
            )
        except DivergedError as error:  # one arm's failure is a result; the others go on
            diverged.append(f"{run.name} ({error})")
            continue
        records.append(record)
    if diverged:
        raise DivergedError(
            f"{len(diverged)} of {len(runs)} runs diverged: {' | '.join(diverged)} "
            f"The other runs are finished, in {output}."
        )
    return records
