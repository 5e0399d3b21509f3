"""The arms of the study: one function each, which returns its training config.

The predecessor's question: does choosing a crop by a small gray glimpse help, and how small may the
glimpse be?
"""

from dataclasses import replace

from training.config import TrainConfig

FIVE = "five"  # the predecessor's candidates; the whole image is an arm of its own
BEGUN_LR = 0.03  # at higher rates a classifier forgets the one it began with


def whole() -> TrainConfig:
    """Show the classifier the whole image at the crop's size: what choosing must beat.

    `srp-train from SHARDS --policy whole --candidates full`. Imagenette, canvas 168, crop
    112, 2 epochs: 58.3 % (1 seed), 3.5 min on two AMD EPYC cores.
    """
    return TrainConfig(policy="whole", candidates="full")


def centre() -> TrainConfig:
    """Show the classifier the centre crop: what choosing must beat among the five.

    `srp-train from SHARDS --policy centre --candidates centre`. Imagenette, canvas
    168, crop 112, 2 epochs: 58.2 % (1 seed), 3.6 min on two AMD EPYC cores.
    """
    return TrainConfig(policy="centre", candidates="centre")


def random_crop() -> TrainConfig:
    """Show a random crop: the floor of choosing. Its table gives the mean of all five as well.

    `srp-train from SHARDS --policy random --candidates five`. Not measured yet.
    """
    return TrainConfig(policy="random", candidates=FIVE)


def predecessor(glimpse_size: int) -> TrainConfig:
    """Repeat the predecessor: blended crops, padded glimpses, its recipe.

    Its faults are left out: there is no noise at evaluation, and each image is decoded once. The
    recipe is timm's of its time: SGD at a constant 0.05 (the first decay was due after epoch
    30), weight decay 2e-5, pixels in 0 to 1 without normalisation.

    `srp-train from SHARDS --policy blend --candidates five --glimpse-size S --pad-glimpses
    --tau-end 1 --lr 0.05 --sched step --weight-decay 2e-5 --shift 0 --mean 0,0,0 --std 1,1,1`.
    Imagenette, canvas 168, crop 112, 2 epochs, S = 16, 32, 64, 112: 42.7, 43.0, 41.7, 25.8 % (1
    seed each), 5.0 to 5.8 min each on two AMD EPYC cores.
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
    """Choose one crop in training as at evaluation; a balance keeps a batch from one place.

    `srp-train from SHARDS --policy straight-through --candidates five --glimpse-size S
    --balance 0.1`. Imagenette, canvas 168, crop 112, 2 epochs, S = 16, 32: 52.1, 52.7 % (1 seed
    each), 4.9 and 4.3 min on two AMD EPYC cores.
    """
    return TrainConfig(
        policy="straight-through", candidates=FIVE, glimpse_size=glimpse_size, balance=0.1
    )


def expected(glimpse_size: int) -> TrainConfig:
    """Learn from the exact expectation over all five crops, at five times the compute.

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
    """Learn a map of the whole canvas by `straight-through`, from a classifier of random crops.

    The proposer's rate is among those that learnt most, on held-out training images
    (`training/results/README.md`).

    `srp-train from SHARDS --policy straight-through --proposer map --glimpse-size SIDE
    --initial-checkpoint RUN --lr 0.03 --proposer-lr 0.5`; RUN is a run of random crops.
    Scattered Imagenette, SIDE 112: 46.7 ± 2.9 % (5 seeds), below its centre crop; 15 to 21 min on
    one AMD EPYC core.
    """
    return TrainConfig(
        policy="straight-through", proposer="map", glimpse_size=side, lr=BEGUN_LR, proposer_lr=0.5,
    )  # fmt: skip


def expected_by_map(side: int) -> TrainConfig:
    """Learn a map by the expectation, estimated from two crops per image, at twice the compute.

    Without a balance it always takes the centre; exact, it would classify every crop.

    `srp-train from SHARDS --policy expected --num-draws 2 --balance 0.3`, the rest as `by_map`.
    Scattered Imagenette, SIDE 112: 41.8 ± 0.7 % (5 seeds), below its centre crop; 23 to 26 min on
    one AMD EPYC core.
    """
    return replace(by_map(side), policy="expected", num_draws=2, balance=0.3)


def chooser() -> TrainConfig:
    """Choose by a map that is fitted to out-of-fold losses, and train on its choices: the method.

    `srp-train from SHARDS`. Of scattered Imagenette and of drawn scenes: `training/results`.
    """
    return TrainConfig(policy="distilled")


def tuned(side: int, *, position_prior: bool = False) -> TrainConfig:
    """Train the classifier further on the choices of the map fitted to it; the map is frozen.

    `straight-through` would unlearn the map: on scattered Imagenette, two epochs at a
    `--proposer-lr` of 0.001 lowered the part of the object in the chosen crop from 75 to 31 %, as
    much as a random one of the nine, while the map stayed as sure of itself.

    `srp-train from SHARDS --policy straight-through --proposer map --glimpse-size SIDE
    --initial-checkpoint RUN --lr 0.03 --proposer-lr 0 --tau-start 0.5`; RUN is a distilled run.
    Scattered Imagenette, SIDE 112: 70.3 ± 0.2 % (5 seeds), 15 min on one AMD EPYC core; Imagenette
    with the prior, SIDE 64: `training/results`.
    """
    return TrainConfig(
        policy="straight-through", proposer="map", glimpse_size=side, lr=BEGUN_LR, proposer_lr=0.0,
        tau_start=0.5, position_prior=position_prior,
    )  # fmt: skip
