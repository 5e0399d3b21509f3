"""Profiles of the study: which arms, seeds and epochs, in which order."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.common.errors import ConfigError
from training.choose.config import DistillConfig
from training.config import TrainConfig
from training.study.arms import (
    BEGUN_LR,
    blend,
    by_map,
    centre,
    chooser,
    expected,
    expected_by_map,
    predecessor,
    random_crop,
    random_of_all,
    straight_through,
    tuned,
    whole,
)

RANDOM = "random"  # name of the arm whose classifier proposers are fitted to
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class PlannedArm:
    """One line of the comparison: a name without its seed, and how to train it.

    Attributes:
        name: Unique in its profile.
        config: How to train it; for a distilled arm, how its base is trained.
        distilled: How to fit a proposer to the arm `random` of the same seed; None trains.
        begins_with: Name of the arm whose networks of the same seed it begins with, if any.
        rounds: Multiple of the profile's epochs.
    """

    name: str
    config: TrainConfig
    distilled: DistillConfig | None = None
    begins_with: str | None = None
    rounds: int = 1

    @property
    def base(self) -> str | None:
        """Name of the arm that must finish first, if any."""
        return RANDOM if self.distilled is not None else self.begins_with


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much of the study to run.

    Attributes:
        epochs: Epochs of a round; an arm has one or more rounds.
        seeds: Each arm is run once with each.
        arms: Each after the arm that it is distilled from or begins with.
        evaluations: Validations of each run, spread over its epochs; 1 takes the last weights only.
        batch_size: Images a step.
        crops: Sides of the crops that it is made for, px, from the best to the cheapest; see
            `training/study/sizes.py`. The candidates are `candidates`.
        candidates: Crops of the shards that it is made for.
        fewest_epochs: Of a round, where a machine is slow.
        minutes: What all trainings should take at most; None has no limit.
        num_data_sets: Data sets of the same size that `make reproduce` runs it on.
    """

    epochs: int
    seeds: tuple[int, ...]
    arms: tuple[PlannedArm, ...]
    evaluations: int = 10
    batch_size: int = TrainConfig.batch_size
    crops: tuple[int, ...] = ()
    candidates: str = "full+grid3"
    fewest_epochs: int = 1
    minutes: float | None = None
    num_data_sets: int = 1

    def only(self, names: tuple[str, ...]) -> "Profile":
        """Keep only these arms and those that they need.

        Raises:
            ConfigError: If there is no arm of a name.
        """
        known = {arm.name: arm for arm in self.arms}
        wanted = set()
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"--arms must be in the profile; got {name!r}. Choose from {', '.join(known)}."
                )
            needed: str | None = name
            while needed is not None:
                wanted.add(needed)
                needed = known[needed].base
        return replace(self, arms=tuple(arm for arm in self.arms if arm.name in wanted))


def first_look(glimpse_px: int, **options: Any) -> Iterator[PlannedArm]:
    """List the arms that answer the short question: whole, centre, the chooser, the predecessor.

    Args:
        glimpse_px: The predecessor's, px.
        options: Fields of every arm's config that differ from the defaults.
    """
    for name, config in (
        ("whole", whole()),
        ("centre", centre()),
        ("chooser", chooser()),
        (f"predecessor-g{glimpse_px}", predecessor(glimpse_px)),
    ):
        yield PlannedArm(name=name, config=replace(config, **options))


def compare(glimpses: tuple[int, ...]) -> Iterator[PlannedArm]:
    """List the chooser, and the predecessor and the policies of its kind over glimpse sizes, px."""
    yield PlannedArm(name="whole", config=whole())
    yield PlannedArm(name="centre", config=centre())
    yield PlannedArm(name="chooser", config=chooser())
    yield PlannedArm(name=RANDOM, config=random_crop())
    for side in glimpses:
        yield PlannedArm(name=f"predecessor-g{side}", config=predecessor(side))
        yield PlannedArm(name=f"straight-through-g{side}", config=straight_through(side))
        yield PlannedArm(name=f"blend-g{side}", config=blend(side))
        yield PlannedArm(name=f"expected-g{side}", config=expected(side))


def choosing(side: int, smaller: tuple[int, ...]) -> Iterator[PlannedArm]:
    """List the arms that show when choosing is worth it, on shards with `full+grid3`.

    Proposers of every kind are fitted to the classifier of random crops. `tuned` continues with two
    of them; `straight-through` and `expected` continue with that classifier and learn a map
    meanwhile, for as many epochs. The whole image and the centre crop are trained for as long as
    `tuned` and its start together, from nothing and, since random crops may train better, after
    them (`whole-tuned`, `centre-tuned`). The two folds, which only the choice needs, are not
    counted.

    Args:
        side: Size of the crops and of the map's glimpse, px.
        smaller: Other glimpse sizes for the map, px.
    """
    yield PlannedArm(name="whole", config=whole(), rounds=2)
    yield PlannedArm(name="centre", config=centre(), rounds=2)
    yield PlannedArm(name=RANDOM, config=random_of_all())
    for name, fixed in (("whole", whole()), ("centre", centre())):
        config = replace(fixed, lr=BEGUN_LR)
        yield PlannedArm(name=f"{name}-tuned", config=config, begins_with=RANDOM)
    for prior in (False, True):
        fitted = _distilled(proposer="map", glimpse_size=side, position_prior=prior)
        config = tuned(side, position_prior=prior)
        yield fitted
        name = fitted.name.replace("distilled", "tuned")
        yield PlannedArm(name=name, config=config, begins_with=fitted.name)
    for kind, sides in (("crops", (16, 32)), ("joint", (32,)), ("map", smaller)):
        for px in sides:
            yield _distilled(proposer=kind, glimpse_size=px)
    yield _distilled(proposer="crops", glimpse_size=32, position_prior=True)
    for candidates in ("five", "full+five", "grid3"):
        yield _distilled(proposer="map", glimpse_size=side, candidates=candidates)
    for policy, config in (("straight-through", by_map(side)), ("expected", expected_by_map(side))):
        yield PlannedArm(name=f"{policy}-map-g{side}", config=config, begins_with=RANDOM)


def _distilled(**options: Any) -> PlannedArm:
    wanted = DistillConfig(**options)
    return PlannedArm(name=wanted.arm, config=random_of_all(), distilled=wanted)


PROFILES = {
    # Drawn scenes, with a small classifier: minutes on two cores.
    "smoke": Profile(
        epochs=16, fewest_epochs=10, seeds=(0,), evaluations=4, crops=(32,), minutes=5,
        num_data_sets=2, arms=tuple(first_look(16, model="test_resnet", lr=0.05)),
    ),
    # The short question for one's own images, as they are and scattered: for two cores.
    "quick": Profile(
        epochs=6, fewest_epochs=4, seeds=(0,), evaluations=3, crops=(64, 48, 32), minutes=30,
        num_data_sets=2, arms=tuple(first_look(32)),
    ),
    # Canvas 336, crop 224: the predecessor's own sizes, for a GPU.
    "full": Profile(
        epochs=20, fewest_epochs=20, seeds=(0, 1, 2), crops=(224,), candidates="full+five",
        batch_size=128, arms=tuple(compare((32, 64, 128, 224))),
    ),
    # When choosing is worth it: Imagenette at canvas 168, scatter at canvas 224, both crop 112.
    "choosing": Profile(
        epochs=4, seeds=SEEDS, arms=tuple(choosing(112, smaller=(32, 64))), evaluations=1
    ),
    # The same for classifiers that learn from nothing on two cores: Imagenette at canvas 112,
    # crop 64.
    "choosing-64": Profile(
        epochs=8, seeds=SEEDS, arms=tuple(choosing(64, smaller=(16, 32))), evaluations=1
    ),
}  # fmt: skip
