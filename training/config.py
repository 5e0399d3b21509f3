"""What training is asked to do. Each field is also an option; its default is written here alone.

Options that timm's train.py has carry timm's names.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline import CANDIDATES_TEXT
from pipeline.command.settings import check_settings, flag_of, named_values, setting
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError
from training.model.policies import DISTILLED, POLICIES, policies_using
from training.optim.schedules import SCHEDULES, schedules_using

NEEDS = {
    "distill_loss_weight": "kd_model",
    "kd_temperature": "kd_model",
    "model_ema_decay": "model_ema",
    "model_ema_warmup": "model_ema",
    "ratio": "scale",
    "scale_off_epochs": "scale",
}
"""Fields that some other field, which is off by default, would ignore."""
TEACHING = ("kd_model", "kd_temperature", "distill_loss_weight")
FOLDS = 2  # parts of the training split, each left out by the classifier that judges its images
PROPOSERS = ("crops", "joint", "map")
PROFILE_NAMES = ("smoke", "quick", "full", "choosing", "choosing-64")
# The largest numbers that are accepted: beyond them is a typing error, or a limit of torch.
MOST_SEED = 2**32 - 1
MOST_EPOCHS = 1_000_000
MOST_RATE = 1000
MOST_PX = 65_536
# Which divide a step's images among batches; a run may go on with others of the same product.
SPLIT_FIELDS = ("batch_size", "grad_accum_steps")
# Which change no figure but the speed.
MACHINE_FIELDS = ("workers", "device", "preload", "log_tensorboard", "log_wandb", "log_trackio")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NAMES = f"Names joined by commas, or a set: {CANDIDATES_TEXT}."


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One `srp-train from SHARDS` command."""

    policy: str = setting(DISTILLED, "How the crop is chosen.", choices=tuple(POLICIES))
    candidates: str | None = setting(
        None, f"Crops to choose among. {NAMES}", shown="those of the shards"
    )
    model: str = setting("resnet18", "Classifier, by its name in timm.")
    model_kwargs: tuple[str, ...] = setting(
        (),
        "Argument of the classifier in timm, NAME=VALUE: stem_type=deep, aa_layer=blurpool or "
        "avg_down=True. May be repeated.",
        shown="none",
        multiple=True,
    )
    initial_checkpoint: str = setting(
        "",
        "Run, or a checkpoint of one, whose classifier to start with, and whose proposer if it "
        "has the same shape. Halves of the images begin with the same halves of it, if it has any.",
        shown="none",
    )
    proposer: str | None = setting(
        None,
        "What scores the crops: map sees the whole canvas, crops sees each glimpse alone, joint "
        "sees it with the others.",
        choices=PROPOSERS,
        shown="map for --policy distilled, else crops",
    )
    position_prior: bool = setting(False, "Learn a score for each crop's place, whatever it shows.")
    glimpse_size: int | None = setting(
        None, "Side of a glimpse, px.", low=1, high=MOST_PX, shown="that of the shards"
    )
    pad_glimpses: bool = setting(
        False, "Pad glimpses with zeros to the crop's size, as the predecessor did."
    )
    proposer_channels: tuple[int, ...] | None = setting(
        None,
        "Output channels of the proposer's convolutions.",
        low=1,
        high=4096,
        shown="8,16,32; for a map, by the glimpse size",
    )
    tau_start: float = setting(
        1.0, "Gumbel-Softmax temperature at the first step.", low=1e-3, high=1000
    )
    tau_end: float = setting(
        0.5,
        "Gumbel-Softmax temperature at the last step; it changes geometrically in between.",
        low=1e-3,
        high=1000,
    )
    balance: float = setting(
        0.0,
        "Weight of the entropy of the batch's mean choice, which keeps all crops in use.",
        low=0,
        high=1000,
    )
    random_epochs: int = setting(
        0,
        "Epochs at the start that train the classifier on random crops.",
        low=0,
        high=MOST_EPOCHS,
    )
    num_draws: int = setting(
        0, "Crops drawn per image by --policy expected; 0 takes all, exactly.", low=0, high=1000
    )
    explore_epochs: int | None = setting(
        None,
        "Epochs, of --epochs, in which --policy distilled trains a classifier on each half of the "
        "images, on random crops; with 0 the halves of --initial-checkpoint judge as they are.",
        low=0,
        high=MOST_EPOCHS,
        shown="0 where --initial-checkpoint has halves, else half of --epochs",
    )
    judge_mirrors: bool = setting(False, "Judge crops with their mirrors too, in twice the time.")
    fit_epochs: int = setting(
        40, "Passes of the fit of a proposer over the loss matrix.", low=1, high=MOST_EPOCHS
    )
    epochs: int = setting(
        20, "Passes of the classifier over the training split.", low=1, high=MOST_EPOCHS
    )
    batch_size: int = setting(
        64, "Images per batch and process.", flags="-b --batch-size", low=2, high=1_000_000
    )
    grad_accum_steps: int = setting(
        1, "Batches per step and process: their gradients make one step.", low=1, high=1_000_000
    )
    sync_bn: bool = setting(False, "Let batch norms average over the batches of all processes.")
    opt: str = setting("sgd", "Optimizer, by its name in timm.")
    opt_kwargs: tuple[str, ...] = setting(
        (),
        "Argument of the optimizer in timm, NAME=VALUE: nesterov=True. May be repeated.",
        shown="none",
        multiple=True,
    )
    lr: float = setting(0.1, "Highest learning rate.", low=0, high=MOST_RATE)
    proposer_lr: float | None = setting(
        None, "Highest learning rate of the proposer.", low=0, high=MOST_RATE, shown="--lr"
    )
    momentum: float = setting(
        0.9,
        "Momentum of cosine and step; onecycle has its own, 0.95 to 0.85 and back.",
        low=0,
        high=1,
    )
    weight_decay: float = setting(
        5e-4, "Weight decay; biases and norms have none.", low=0, high=1000
    )
    clip_grad: float | None = setting(
        None, "Largest norm of the gradient.", low=1e-9, high=1e9, shown="any"
    )
    sched: str = setting("onecycle", "Schedule of the learning rate.", choices=tuple(SCHEDULES))
    warmup_epochs: int = setting(
        0, "Epochs of linear warm-up of cosine and step.", low=0, high=MOST_EPOCHS
    )
    decay_epochs: int = setting(30, "Epochs between the decays of step.", low=1, high=MOST_EPOCHS)
    decay_rate: float = setting(0.1, "Factor of each decay of step.", low=0, high=1)
    model_ema: bool = setting(
        False,
        "Validate, save and use a moving average of the weights and of what batch norms average.",
    )
    model_ema_decay: float = setting(
        0.99,
        "Part of that average that a step keeps: 0.99 averages about 100 steps.",
        low=0,
        high=1,
    )
    model_ema_warmup: bool = setting(
        False, "Keep less in the first steps: after step n at most 1 - n^(-2/3)."
    )
    smoothing: float = setting(0.1, "Label smoothing.", low=0, high=1)
    kd_model: tuple[str, ...] = setting(
        (),
        "Run whose classifier teaches this one, on the same crops; repeated, their mean teaches.",
        shown="none",
        multiple=True,
    )
    kd_temperature: float = setting(
        1.0, "Temperature of the teachers' and the own softmax.", low=0.01, high=1000
    )
    distill_loss_weight: float = setting(
        0.5, "Part of the loss that the teachers give; the labels give the rest.", low=0, high=1
    )
    hflip: float = setting(0.5, "Probability of mirroring left to right.", low=0, high=1)
    alternating_flip: bool = setting(
        False,
        "Mirror each image left to right in every other epoch instead; chance decides the first.",
    )
    vflip: float = setting(0.0, "Probability of mirroring upside down.", low=0, high=1)
    shift: int = setting(4, "Largest shift of the classifier's input, px.", low=0, high=MOST_PX)
    scale: tuple[float, float] | None = setting(
        None,
        "Show the classifier a random window of the canvas, mirrored but not shifted, in place of "
        "the crop: least and most of the canvas's area that is in it.",
        low=1e-3,
        high=1,
        shown="off",
    )
    ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "Least and most of a window's width / height.", low=0.01, high=100,
        shown="0.75,1.333",
    )  # fmt: skip
    scale_off_epochs: int = setting(
        0, "Last epochs without --scale: on the crop of the evaluation.", low=0, high=MOST_EPOCHS
    )
    start_size: int | None = setting(
        None,
        "Side of the classifier's first inputs, px; in multiples of 8 it grows to the crop's over "
        "three quarters of the epochs.",
        low=8,
        high=MOST_PX,
        shown="the crop's",
    )
    mean: tuple[float, float, float] = setting(
        IMAGENET_MEAN, "Subtracted from RGB in 0 to 1.", low=0, high=1
    )
    std: tuple[float, float, float] = setting(
        IMAGENET_STD, "Divides RGB after that.", low=1e-3, high=1000
    )
    amp: bool = setting(True, "Compute in bfloat16 where the device is fast at it.")
    channels_last: bool = setting(True, "Keep tensors channels last in memory.")
    torchcompile: str | None = setting(
        None,
        "Compile the classifier's training for this machine, with inductor or the backend named.",
        shown="no",
        bare="inductor",
    )
    fold: int | None = setting(
        None,
        "Leave out half of the training images, 0 or 1; an image's key decides its half.",
        low=0,
        high=FOLDS - 1,
        shown="none",
    )
    seed: int = setting(
        42, "Seed of weights, order, augmentation and Gumbel noise.", low=0, high=MOST_SEED
    )
    dev: bool = setting(
        False,
        "Validate on a fixed tenth of the training split, and train on the rest: for tuning.",
    )
    val_interval: int = setting(1, "Epochs between validations.", low=1, high=MOST_EPOCHS)
    workers: int = setting(
        min(num_usable(), 8),
        "Threads that read samples.",
        flags="-j --workers",
        low=1,
        high=1024,
        shown="CPUs this process may use, at most 8",
    )
    device: str = setting(
        "auto", "Device; auto takes a GPU if there is one.", choices=("auto", "cpu", "cuda")
    )
    preload: str = setting(
        "auto",
        "Where all training pixels are kept once they were read; auto takes a GPU with memory to "
        "spare, or none.",
        choices=("auto", "device", "ram", "none"),
    )
    log_tensorboard: bool = setting(True, "Write TensorBoard's event file to the run's folder.")
    log_wandb: bool = setting(False, "Log to Weights & Biases, project srp.")
    log_trackio: bool = setting(False, "Log to Trackio, project srp.")

    def __post_init__(self) -> None:
        """Check ranges, choices and what must fit together, before anything is read."""
        check_settings(self)
        _check_recipe(self)
        if self.num_draws == 1:
            raise ConfigError(
                "--num-draws must be 0 (exact) or at least 2, since each draw is compared with "
                "the others; got 1. Use --num-draws 2."
            )
        uses_random_epochs = "random_epochs" in POLICIES[self.policy].options
        if uses_random_epochs and self.epochs <= self.random_epochs:
            raise ConfigError(
                "--random-epochs must be fewer than --epochs, or no choice is learnt; got "
                f"{self.random_epochs} of {self.epochs}. Lower it, or use --policy random."
            )
        if self.borrows_folds and (self.explore_epochs == 0 or self.initial_checkpoint):
            if not self.initial_checkpoint:
                raise ConfigError(
                    "--explore-epochs 0 needs --initial-checkpoint, a run of --policy distilled "
                    "whose halves judge the images; got none. Name one, or raise --explore-epochs."
                )
        elif POLICIES[self.policy].is_fitted and not 0 < self.num_explored <= self.epochs:
            raise ConfigError(
                "--explore-epochs must be 1 or more, and no more than --epochs; got "
                f"{self.num_explored} of {self.epochs}. Use --epochs 2 or more."
            )
        if POLICIES[self.policy].is_fitted and self.fold is not None:
            raise ConfigError(
                f"--fold cannot be combined with --policy {self.policy}, which trains a classifier "
                f"for each fold; got --fold {self.fold}. Drop --fold, or use --policy random."
            )
        if self.pad_glimpses and self.proposer_kind == "map":
            raise ConfigError(
                "--pad-glimpses needs a proposer that sees crops; got --proposer map. "
                "Drop --pad-glimpses."
            )
        fields = dataclasses.fields(self)
        changed = (field.name for field in fields if getattr(self, field.name) != field.default)
        check_used(self, changed)

    @property
    def images_per_rank(self) -> int:
        """Images of one step on one process."""
        return self.batch_size * self.grad_accum_steps

    @property
    def selects(self) -> bool:
        """Whether there is a proposer."""
        return POLICIES[self.policy].looks

    @property
    def proposer_kind(self) -> str:
        """What scores the crops."""
        return self.proposer or ("map" if POLICIES[self.policy].is_fitted else "crops")

    @property
    def holds_proposer(self) -> bool:
        """Whether there is a proposer whose weights the steps do not change."""
        return self.selects and (self.proposer_lr == 0 or POLICIES[self.policy].is_fitted)

    @property
    def chooses_ahead(self) -> bool:
        """Whether all choices of the training are known before its first step."""
        return self.holds_proposer and POLICIES[self.policy].takes_one

    @property
    def num_explored(self) -> int:
        """Epochs before there is a proposer; 0 for policies without stages."""
        if not POLICIES[self.policy].is_fitted:
            return 0
        return self.epochs // 2 if self.explore_epochs is None else self.explore_epochs

    @property
    def borrows_folds(self) -> bool:
        """Whether the classifiers that judge are those of the run that it begins with."""
        return POLICIES[self.policy].is_fitted and not self.num_explored

    @property
    def own_epochs(self) -> int:
        """Epochs of the run's own curve: all, or the last stage's."""
        return self.epochs - self.num_explored


def _check_recipe(config: TrainConfig) -> None:
    """Check the optional parts of a recipe."""
    for field in ("model_kwargs", "opt_kwargs"):
        named_values(flag_of(config, field), getattr(config, field))
    if config.alternating_flip and config.hflip != TrainConfig.hflip:
        raise ConfigError(
            "--alternating-flip mirrors each image in every other epoch, whatever --hflip says; "
            f"got --hflip {config.hflip}. Drop one of both."
        )
    for field in ("scale", "ratio"):
        bounds = getattr(config, field) or (0, 0)
        if bounds[0] > bounds[1]:
            raise ConfigError(
                f"--{field} must be MIN,MAX; got {bounds[0]},{bounds[1]}. Turn them round."
            )
    if config.scale_off_epochs >= config.epochs:
        raise ConfigError(
            "--scale-off-epochs must be fewer than --epochs, or no window is drawn; got "
            f"{config.scale_off_epochs} of {config.epochs}. Lower it, or drop --scale."
        )
    if config.kd_model and config.fold is not None:
        raise ConfigError(
            "--fold leaves images out, which the teachers of --kd-model may have seen; got both. "
            "Drop one of them."
        )


def check_used(config: TrainConfig, fields: Iterable[str]) -> None:
    """Reject fields that were set and that the config's other fields would ignore.

    Raises:
        ConfigError: If there is one; it names the policies, or the schedules, that use it.
    """
    for field in fields:
        for option, chosen, users in (
            ("--policy", config.policy, policies_using(field)),
            ("--sched", config.sched, schedules_using(field)),
        ):
            if chosen not in users:
                flag = flag_of(config, field)
                *others, last = users
                known = f"{', '.join(others)} or {last}" if others else last
                raise ConfigError(
                    f"{flag} needs {option} {known}; got {option} {chosen}. Drop {flag}, or change "
                    f"{option}."
                )
        if field in NEEDS and not getattr(config, NEEDS[field]):
            flag, needed = flag_of(config, field), flag_of(config, NEEDS[field])
            raise ConfigError(f"{flag} needs {needed}; got none. Add {needed}, or drop {flag}.")
