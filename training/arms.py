"""The arms of the comparison, one function each, and the profiles that say how much of it to run.

The question is the predecessor's: does choosing a crop by a small gray glimpse help, and how
small may the glimpse be?
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import ConfigError
from training.config import DistillConfig, TrainConfig

FIVE = "five"  # the predecessor's candidates; the whole image is an arm of its own
RANDOM = "random"  # name of the arm whose classifier proposers are fitted to
SEEDS = (0, 1, 2, 3, 4)
BEGUN_LR = 0.03  # a classifier that begins with another's would forget it at higher rates
MAP_CHANNELS = (8, 16, 32, 32)  # the last one's neurons see 31 px of the glimpse


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the comparison: a name without its seed, and how to train it.

    Attributes:
        name: Unique in its profile.
        config: Of the training; of a distilled arm, what its base is trained with.
        distilled: How a proposer is fitted to the arm `random` of the same seed; None trains.
        begins_with: Name of the arm whose networks of the same seed it begins with, if any.
        rounds: How many times the profile's epochs it is trained for.
        random_rounds: How many of them at the start train the classifier on random crops.
    """

    name: str
    config: TrainConfig
    distilled: DistillConfig | None = None
    begins_with: str | None = None
    rounds: int = 1
    random_rounds: int = 0

    @property
    def base(self) -> str | None:
        """Name of the arm that must be finished before it, if any."""
        return RANDOM if self.distilled is not None else self.begins_with


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much of the study to run.

    Attributes:
        epochs: Of a round; an arm has one or more.
        seeds: Each arm is run once with each.
        arms: Every one, behind those that it is distilled from or begins with.
        evaluations: Of each run, spread over its epochs; 1 looks at the last weights alone.
    """

    epochs: int
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    evaluations: int = 10

    def only(self, names: tuple[str, ...]) -> "Profile":
        """Leave out all arms but these and those that they need.

        Raises:
            ConfigError: If there is none of such a name.
        """
        known = {arm.name: arm for arm in self.arms}
        wanted = set()
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"--arms must be of the profile; got {name!r}. Name some of {', '.join(known)}."
                )
            needed: str | None = name
            while needed is not None:
                wanted.add(needed)
                needed = known[needed].base
        return replace(self, arms=tuple(arm for arm in self.arms if arm.name in wanted))


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


def random_of_all() -> TrainConfig:
    """Show a random one of all the shards' crops: the classifier that proposers are fitted to.

    `srp-train from SHARDS --policy random`. Of scattered Imagenette: `training/results`.
    """
    return TrainConfig(policy="random")


def by_map(side: int) -> TrainConfig:
    """Learn a map of the whole canvas together with the classifier, from nothing.

    `srp-train from SHARDS --policy straight-through --proposer map --glimpse-size SIDE
    --proposer-channels 8,16,32,32 --balance 0.1 --proposer-lr 0.05`, the first half of the epochs
    with `--random-epochs`. Not measured yet.
    """
    return TrainConfig(
        policy="straight-through", balance=0.1, proposer_lr=0.05, **_map(side),
    )  # fmt: skip


def tuned(side: int, *, position_prior: bool = False) -> TrainConfig:
    """Go on with a classifier on what the map that was fitted to it chooses; the map stays.

    It stays because `straight-through` unlearns it: on scattered Imagenette two epochs at a
    `--proposer-lr` of 0.001 took what the chosen crops cover of the objects from 75 to 31 %, which
    is chance, while the map stayed as sure of itself.

    `srp-train from SHARDS --policy straight-through --proposer map --glimpse-size SIDE
    --proposer-channels 8,16,32,32 --initial-checkpoint RUN --lr 0.03 --proposer-lr 0
    --tau-start 0.5`, RUN a distilled run. Scattered Imagenette, SIDE 112: 65.5 ± 0.5 % (3 seeds),
    about 8 min on two AMD EPYC cores; Imagenette with the prior, SIDE 64: `training/results`.
    """
    return TrainConfig(
        policy="straight-through", lr=BEGUN_LR, proposer_lr=0.0, tau_start=0.5,
        position_prior=position_prior, **_map(side),
    )  # fmt: skip


def _map(side: int) -> dict[str, Any]:
    """Give the options of a map; one as large as a crop costs 0.8 % of a ResNet18 on the crop."""
    return {"proposer": "map", "glimpse_size": side, "proposer_channels": MAP_CHANNELS}


def compare(
    predecessor_glimpses: tuple[int, ...], glimpses: tuple[int, ...], *, with_slow: bool
) -> Iterator[Arm]:
    """List the arms that are compared with the predecessor.

    Args:
        predecessor_glimpses: Sides of the glimpses for the predecessor's arm, px.
        glimpses: The same for the policies that are compared with it, px.
        with_slow: Whether to run the arms that cost several times as much.
    """
    yield Arm(name="whole", config=whole())
    yield Arm(name="centre", config=centre())
    if with_slow:
        yield Arm(name=RANDOM, config=random_crop())
    for side in predecessor_glimpses:
        yield Arm(name=f"predecessor-g{side}", config=predecessor(side))
    for side in glimpses:
        yield Arm(name=f"straight-through-g{side}", config=straight_through(side))
    if with_slow:
        for side in glimpses:
            yield Arm(name=f"blend-g{side}", config=blend(side))
            yield Arm(name=f"expected-g{side}", config=expected(side))


def choosing(side: int, smaller: tuple[int, ...]) -> Iterator[Arm]:
    """List the arms that tell when choosing is worth it, on shards with `full+grid3`.

    Proposers of every kind are fitted to the classifier of random crops. `tuned` goes on with two
    of them, and `straight-through` learns all from nothing. The whole image and the centre crop
    are trained for as long as `tuned` and what it begins with, from nothing and, since random
    crops may be the better school, on top of them (`whole-tuned`, `centre-tuned`). The folds, two
    trainings on half of the images each, which only the choice needs, are not set against them.

    Args:
        side: Of the crops and of the map's glimpse, px.
        smaller: Sides of other glimpses for the map, px.
    """
    yield Arm(name="whole", config=whole(), rounds=2)
    yield Arm(name="centre", config=centre(), rounds=2)
    yield Arm(name=RANDOM, config=random_of_all())
    for name, fixed in (("whole", whole()), ("centre", centre())):
        config = replace(fixed, lr=BEGUN_LR)
        yield Arm(name=f"{name}-tuned", config=config, begins_with=RANDOM)
    for prior in (False, True):
        fitted = _distilled(**_map(side), position_prior=prior)
        config = tuned(side, position_prior=prior)
        yield fitted
        name = fitted.name.replace("distilled", "tuned")
        yield Arm(name=name, config=config, begins_with=fitted.name)
    for kind, sides in (("crops", (16, 32)), ("joint", (32,)), ("map", smaller)):
        for px in sides:
            yield _distilled(proposer=kind, glimpse_size=px)
    yield _distilled(proposer="crops", glimpse_size=32, position_prior=True)
    for candidates in ("five", "full+five", "grid3"):
        yield _distilled(**_map(side), candidates=candidates)
    name = f"straight-through-map-g{side}"
    yield Arm(name=name, config=by_map(side), rounds=2, random_rounds=1)


def _distilled(**options: Any) -> Arm:
    wanted = DistillConfig(**options, vflip=0.5)
    parts = (
        "distilled",
        wanted.proposer,
        "prior" if wanted.position_prior else None,
        wanted.candidates,
        f"g{wanted.glimpse_size}",
    )
    name = "-".join(part for part in parts if part)
    return Arm(name=name, config=random_of_all(), distilled=wanted)


PROFILES = {
    # The drawn scenes at canvas 96, crop 64: shows that everything works, and no more.
    "smoke": Profile(
        epochs=2, seeds=(0,), arms=tuple(compare((16,), (16,), with_slow=False))
    ),
    # Imagenette at canvas 168, crop 112: the full sizes halved.
    "quick": Profile(
        epochs=2, seeds=(0,), arms=tuple(compare((16, 32, 64, 112), (16, 32), with_slow=False))
    ),
    # Imagenette at canvas 336, crop 224: the predecessor's own sizes.
    "full": Profile(
        epochs=20, seeds=(0, 1, 2),
        arms=tuple(compare((32, 64, 128, 224), (32, 64, 128, 224), with_slow=True)),
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
