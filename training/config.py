"""What a training run is asked to do. Defaults live here and nowhere else.

Options that timm's train.py has carry timm's names.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError

SELECTING = ("blend", "straight-through", "expected")
FIXED = ("whole", "centre", "random", "mean")
DISTILLED = "distilled"
TRAINED = (*SELECTING, *FIXED)
POLICIES = (*SELECTING, DISTILLED, *FIXED)
CHOOSING = (*SELECTING, DISTILLED)  # those with a proposer
USED_BY = {
    "proposer": CHOOSING,
    "position_prior": CHOOSING,
    "glimpse_size": CHOOSING,
    "pad_glimpses": CHOOSING,
    "proposer_channels": CHOOSING,
    "proposer_lr": CHOOSING,
    "balance": CHOOSING,
    "random_epochs": SELECTING,
    "tau_start": ("blend", "straight-through"),
    "tau_end": ("blend", "straight-through"),
    "num_draws": ("expected",),
}
"""Which policies use a field of `TrainConfig`; all use one that is not named here."""
FOLDS = 2  # of the training split, each left out by the classifier that tells its losses
PROPOSERS = ("crops", "joint", "map")
SCHEDULES = ("onecycle", "cosine", "step")
PROFILE_NAMES = ("smoke", "quick", "full", "choosing", "choosing-64")
DEVICES = ("auto", "cpu", "cuda")
# The largest numbers that are taken: beyond them lies a slip of the keyboard, or a limit of torch.
MOST_SEED = 2**32 - 1
MOST_EPOCHS = 1_000_000
MOST_RATE = 1000
MOST_PX = 65_536
MOST_WORKERS = 1024
MACHINE_FIELDS = ("workers", "device")  # of a config; they change no figure but the speed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One `srp-train from SHARDS` command.

    Attributes:
        policy: How scores become what the classifier sees; see `training.model.estimators`.
            `distilled` is what `training.choose.fit_proposer` makes.
        candidates: Those to choose among, a set or names joined by commas; None takes all that
            the shards hold.
        model: Name of the classifier in timm.
        initial_checkpoint: Run, or a checkpoint of one, whose weights to begin with: its
            classifier's, and its proposer's if it is alike; empty begins with the seed's.
        proposer: What scores the crops; see `training.model.proposer`. `crops` sees each glimpse by
            itself, `joint` beside the others, `map` sees the whole canvas alone.
        position_prior: Whether each candidate has a learnt score of its own, whatever it shows.
        glimpse_size: Side of the glimpses, px; None takes those of the shards. Others are cut
            from the crops on reading.
        pad_glimpses: Whether the proposer sees glimpses padded to the crop's size, as the
            predecessor's did. Without, it computes less and sees the same.
        proposer_channels: Of the proposer's convolutions, the first after the gray input; None
            takes what suits it and its glimpses; see `training.model.proposer.suited_channels`.
        tau_start: Temperature of the Gumbel-Softmax at the first step.
        tau_end: The same at the last step; geometric in between.
        balance: Weight of the entropy of the batch's mean choice, which keeps all crops in use.
        random_epochs: Epochs at the start that train the classifier on one crop at random, so
            that it has learnt something before the proposer learns from it.
        num_draws: For `expected`: crops drawn per image for an unbiased estimate; 0 is exact.
        epochs: Passes over the training split.
        batch_size: Images a step and process; at least 2, for the batch norms.
        opt: Name of the optimizer in timm.
        lr: Highest learning rate.
        proposer_lr: The same of the proposer; None takes `lr`.
        momentum: Of the optimizer; `onecycle` moves it from 0.95 to 0.85 and back instead.
        weight_decay: Of the optimizer; not applied to biases and norms.
        clip_grad: Largest norm of the gradient, of the networks whose rate is not 0; None leaves
            it.
        sched: How the learning rate changes over the steps.
        warmup_epochs: For `cosine` and `step`: epochs of linear warm-up.
        decay_epochs: For `step`: epochs between decays.
        decay_rate: For `step`: factor of a decay.
        smoothing: Label smoothing, 0 to 1.
        hflip: Probability that an image is mirrored left to right, 0 to 1.
        vflip: Probability that it is mirrored upside down, 0 to 1.
        shift: Largest shift of the classifier's input in x and y, px.
        mean: Subtracted from RGB in 0 to 1.
        std: What RGB is divided by then.
        amp: Whether to compute in bfloat16 where the device is fast at it.
        channels_last: Whether images and features lie channels last in memory.
        fold: Of the training split, left out of training; None trains on all of it.
        seed: Of weights, order, augmentation and Gumbel noise.
        workers: Threads that read samples.
        val_interval: Epochs between evaluations on the validation split.
        device: `auto` takes a GPU if there is one.
    """

    policy: str = "straight-through"
    candidates: str | None = None
    model: str = "resnet18"
    initial_checkpoint: str = ""
    proposer: str = "crops"
    position_prior: bool = False
    glimpse_size: int | None = None
    pad_glimpses: bool = False
    proposer_channels: tuple[int, ...] | None = None
    tau_start: float = 1.0
    tau_end: float = 0.5
    balance: float = 0.0
    random_epochs: int = 0
    num_draws: int = 0
    epochs: int = 20
    batch_size: int = 64
    opt: str = "sgd"
    lr: float = 0.1
    proposer_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_grad: float | None = None
    sched: str = "onecycle"
    warmup_epochs: int = 0
    decay_epochs: int = 30
    decay_rate: float = 0.1
    smoothing: float = 0.1
    hflip: float = 0.5
    vflip: float = 0.0
    shift: int = 4
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    amp: bool = True
    channels_last: bool = True
    fold: int | None = None
    seed: int = 42
    workers: int = min(num_usable(), 8)
    val_interval: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is read."""
        self._check_choices()
        self._check_ranges()
        shares = {"--hflip": self.hflip, "--vflip": self.vflip, "--smoothing": self.smoothing}
        for option, value in shares.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{option} must be 0 to 1; got {value}.")
        if self.fold is not None and self.fold not in range(FOLDS):
            raise ConfigError(f"--fold must be 0 to {FOLDS - 1}; got {self.fold}.")
        if self.num_draws == 1:
            raise ConfigError(
                "--num-draws must be 0 (exact) or at least 2, since each draw is compared with "
                "the others; got 1. Use --num-draws 2."
            )
        if self.policy in SELECTING and self.epochs <= self.random_epochs:
            raise ConfigError(
                "--random-epochs must be fewer than --epochs, or no choice is learnt; got "
                f"{self.random_epochs} of {self.epochs}. Lower it, or use --policy random."
            )
        if self.pad_glimpses and self.proposer == "map":
            raise ConfigError(
                "--pad-glimpses must go with a proposer that sees crops; got --proposer map. "
                "Leave --pad-glimpses out."
            )
        fields = dataclasses.fields(self)
        changed = (field.name for field in fields if getattr(self, field.name) != field.default)
        check_used(self.policy, changed)

    def _check_choices(self) -> None:
        for option, value, known in (
            ("--policy", self.policy, POLICIES),
            ("--proposer", self.proposer, PROPOSERS),
            ("--sched", self.sched, SCHEDULES),
            ("--device", self.device, DEVICES),
        ):
            if value not in known:
                raise ConfigError(f"{option} must be one of {', '.join(known)}; got {value!r}.")

    def _check_ranges(self) -> None:
        for option, value, least, most in (
            ("--glimpse-size", self.glimpse_size, 1, MOST_PX),
            ("--proposer-channels", self.proposer_channels, 1, 4096),
            ("--tau-start", self.tau_start, 1e-3, 1000),
            ("--tau-end", self.tau_end, 1e-3, 1000),
            ("--balance", self.balance, 0, 1000),
            ("--random-epochs", self.random_epochs, 0, MOST_EPOCHS),
            ("--num-draws", self.num_draws, 0, 1000),
            ("--epochs", self.epochs, 1, MOST_EPOCHS),
            ("--batch-size", self.batch_size, 2, 1_000_000),
            ("--lr", self.lr, 0, MOST_RATE),
            ("--proposer-lr", self.proposer_lr, 0, MOST_RATE),
            ("--momentum", self.momentum, 0, 1),
            ("--weight-decay", self.weight_decay, 0, 1000),
            ("--clip-grad", self.clip_grad, 1e-9, 1e9),
            ("--warmup-epochs", self.warmup_epochs, 0, MOST_EPOCHS),
            ("--decay-epochs", self.decay_epochs, 1, MOST_EPOCHS),
            ("--decay-rate", self.decay_rate, 0, 1),
            ("--shift", self.shift, 0, MOST_PX),
            ("--mean", self.mean, 0, 1),
            ("--std", self.std, 1e-3, 1000),
            ("--seed", self.seed, 0, MOST_SEED),
            ("--workers", self.workers, 1, MOST_WORKERS),
            ("--val-interval", self.val_interval, 1, MOST_EPOCHS),
        ):
            check_range(option, value, least, most)

    @property
    def selects(self) -> bool:
        """Whether there is a proposer."""
        return self.policy in CHOOSING

    @property
    def holds_proposer(self) -> bool:
        """Whether there is one that stays as it was."""
        return self.selects and self.proposer_lr == 0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What a proposer is fitted with; the fields are those of `TrainConfig`.

    Attributes:
        candidates: Those to choose among, some of the run's; None takes all of them.
        proposer: What scores the crops.
        position_prior: Whether each candidate has a learnt score of its own.
        glimpse_size: Side of the glimpses, px; None takes those of the shards.
        proposer_channels: Of the proposer's convolutions; None takes what suits it.
        proposer_lr: Highest learning rate of AdamW.
        epochs: Passes over the loss matrix.
        batch_size: Images a step.
        balance: Weight of the entropy of the batch's mean choice, falling to 0 over the epochs.
        weight_decay: Of AdamW.
        vflip: Probability that an image is mirrored upside down, losses and all.
        seed: Of weights, order and mirroring; None takes the run's.
    """

    candidates: str | None = None
    proposer: str = TrainConfig.proposer
    position_prior: bool = TrainConfig.position_prior
    glimpse_size: int | None = TrainConfig.glimpse_size
    proposer_channels: tuple[int, ...] | None = TrainConfig.proposer_channels
    proposer_lr: float = 0.02
    epochs: int = 60
    batch_size: int = 64
    balance: float = 0.0
    weight_decay: float = 0.01
    vflip: float = 0.5  # a map of few images is kept from learning them by heart
    seed: int | None = None

    @property
    def arm(self) -> str:
        """Name the arm by its proposer and by all that is not the default, the seed aside.

        So two fits to one run are told apart by the names of their folders.
        """
        told = {
            "candidates": "", "glimpse_size": "g", "proposer_channels": "c", "proposer_lr": "lr",
            "epochs": "e", "batch_size": "b", "balance": "balance", "weight_decay": "wd",
            "vflip": "vflip",
        }  # fmt: skip
        parts = [DISTILLED, self.proposer, *(["prior"] if self.position_prior else [])]
        for name, short in told.items():
            value = getattr(self, name)
            if value != getattr(type(self), name):
                joined = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
                parts.append(short + re.sub(r"[^\w.+-]+", "-", joined))
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True)
class HeadroomConfig:
    """What an estimate is made with; the fields but `limit` are those of `TrainConfig`."""

    candidates: str | None = TrainConfig.candidates
    model: str = "test_resnet"
    epochs: int = 8
    batch_size: int = TrainConfig.batch_size
    lr: float = TrainConfig.lr
    limit: int = 10_000  # images of each split, at most
    seed: int = TrainConfig.seed

    def __post_init__(self) -> None:
        """Refuse what is no option of a training; that one refuses the rest."""
        check_range("--limit", self.limit, 1, 1_000_000_000)
        check_range("--seed", self.seed, 0, MOST_SEED - FOLDS + 1)  # each classifier has its own


def check_range(
    option: str, value: float | tuple[float, ...] | None, least: float, most: float
) -> None:
    """Refuse a number, or one of several, outside of what can work; a NaN is refused as well.

    Raises:
        ConfigError: If it is. None, which leaves an option out, is not.
    """
    if value is None:
        return
    for number in (value or (0,)) if isinstance(value, tuple) else (value,):
        if not number >= least:
            raise ConfigError(f"{option} must be at least {least}; got {number}.")
        if number > most:
            raise ConfigError(f"{option} must be at most {most}; got {number}.")


def changed_options(one: TrainConfig, other: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """List the options in which two configs differ, but for what changes no figure.

    Returns:
        Each option as it is typed, and its two values.
    """
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if name not in MACHINE_FIELDS and not _alike(name, value, theirs):
            yield f"--{name.replace('_', '-')}", value, theirs


def _alike(name: str, one: Any, other: Any) -> bool:
    if name == "initial_checkpoint" and one and other:  # one place has many spellings
        return Path(one).resolve() == Path(other).resolve()
    return bool(one == other)


def check_used(policy: str, fields: Iterable[str]) -> None:
    """Refuse fields that were set and that a policy would ignore.

    Raises:
        ConfigError: If there is one; it names the policies that use it.
    """
    for field in fields:
        users = USED_BY.get(field, POLICIES)
        if policy not in users:
            option = f"--{field.replace('_', '-')}"
            *others, last = [user for user in users if user in TRAINED]
            known = f"{', '.join(others)} or {last}" if others else last
            raise ConfigError(
                f"{option} needs --policy {known}; got --policy {policy}. Drop {option}, or change "
                "--policy."
            )


def config_to_json(config: TrainConfig) -> dict[str, Any]:
    """Lay a config out for a record."""
    return dataclasses.asdict(config)


def config_from_json(fields: dict[str, Any]) -> TrainConfig:
    """Read what `config_to_json` wrote, lists turned back into tuples.

    What the policy does not use is left out: it decided nothing, and was once accepted.

    Raises:
        ConfigError: If a field is not known or cannot work.
    """
    tuples: dict[str, Any] = {}
    policy = fields.get("policy", TrainConfig.policy)
    for name, value in fields.items():
        if policy in USED_BY.get(name, (policy,)):
            tuples[name] = tuple(value) if isinstance(value, list) else value
    try:
        return TrainConfig(**tuples)
    except (ConfigError, TypeError) as error:
        raise ConfigError(
            f"a run's config must fit this version of srp; got {error}. "
            "Train the run again, or use the version that wrote it."
        ) from error
