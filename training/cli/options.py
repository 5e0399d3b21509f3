"""The options of TrainConfig, one for each field; their defaults are the fields' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline import CANDIDATES_TEXT
from training.config import (
    DEVICES,
    PROPOSERS,
    SCHEDULES,
    TRAINED,
    DistillConfig,
    HeadroomConfig,
    TrainConfig,
)

PATH = click.Path(path_type=Path)
SETS = f"Names joined by commas, or a set: {CANDIDATES_TEXT}."


class Joined(click.ParamType[Any]):
    """Numbers, or names, joined by commas."""

    def __init__(self, kind: type[int] | type[float] | type[str], count: int | None = None) -> None:
        """Expect `count` of a kind, or any number of them."""
        self.kind, self.count = kind, count
        one = "NAME" if kind is str else "N"
        self.name = ",".join([one] * count) if count else f"{one},{one},..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float | str, ...]:
        """Turn what was typed into a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            parts = tuple(self.kind(part.strip()) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers joined by commas.", param, ctx)
        if self.count and len(parts) != self.count:
            self.fail(f"{value!r} is not {self.count} numbers joined by commas.", param, ctx)
        return parts


def _field(names: str, kind: Any, text: str, config: type = TrainConfig) -> Callable[[Any], Any]:
    """Make the option for one field of a config; its default is the field's own."""
    field = names.split()[-1].removeprefix("--").split("/")[0].replace("-", "_")
    default = getattr(config, field)
    joined = isinstance(default, tuple)
    shown = ",".join(map(str, default)) if joined else default not in (None, "")
    return click.option(
        *names.split(), field, type=kind, default=default, show_default=shown, help=text
    )


TRAINING = (
    _field("--policy", click.Choice(TRAINED), "How the crop is chosen."),
    _field("--candidates", str,
           f"Crops to choose among. {SETS}  [default: the shards']"),
    _field("--model", str, "Classifier, by its name in timm."),
    _field("--initial-checkpoint", str,
           "Run whose classifier to begin with, and proposer if it is alike.  [default: none]"),
    _field("--proposer", click.Choice(PROPOSERS), "What scores the crops."),
    _field("--position-prior/--no-position-prior", bool,
           "Give each crop a learnt score of its own, whatever it shows."),
    _field("--glimpse-size", int, "Side of a glimpse, px.  [default: the shards']"),
    _field("--pad-glimpses/--no-pad-glimpses", bool,
           "Show the proposer glimpses padded to the crop's size, as the predecessor did."),
    _field("--proposer-channels", Joined(int),
           "Of the proposer's convolutions.  [default: 8,16,32; of a map by its glimpse]"),
    _field("--tau-start", float, "Gumbel-Softmax temperature at the first step."),
    _field("--tau-end", float, "Gumbel-Softmax temperature at the last step."),
    _field("--balance", float, "Weight of the entropy of the batch's mean choice."),
    _field("--random-epochs", int, "Epochs at the start that choose at random."),
    _field("--num-draws", int, "For `expected`: crops drawn an image; 0 takes all, exactly."),
    _field("--epochs", int, "Passes over the training split."),
    _field("-b --batch-size", int, "Images a step and process."),
    _field("--opt", str, "Optimizer, by its name in timm."),
    _field("--lr", float, "Highest learning rate."),
    _field("--proposer-lr", float, "The same of the proposer.  [default: that of --lr]"),
    _field("--momentum", float, "Of the optimizer; onecycle moves it from 0.95 to 0.85 and back."),
    _field("--weight-decay", float, "Of the optimizer; not applied to biases and norms."),
    _field("--clip-grad", float, "Largest norm of the gradient.  [default: any]"),
    _field("--sched", click.Choice(SCHEDULES), "Schedule of the learning rate."),
    _field("--warmup-epochs", int, "Linear warm-up of cosine and step, epochs."),
    _field("--decay-epochs", int, "Epochs between the decays of step."),
    _field("--decay-rate", float, "Factor of each decay of step."),
    _field("--smoothing", float, "Label smoothing, 0 to 1."),
    _field("--hflip", float, "Probability of mirroring an image, 0 to 1."),
    _field("--vflip", float, "Probability of mirroring an image upside down, 0 to 1."),
    _field("--shift", int, "Largest shift of the classifier's input, px."),
    _field("--mean", Joined(float, 3), "Subtracted from RGB in 0 to 1."),
    _field("--std", Joined(float, 3), "What RGB is divided by then."),
    _field("--amp/--no-amp", bool, "Compute in bfloat16 where the device is fast at it."),
    _field("--channels-last/--no-channels-last", bool, "Keep tensors channels last in memory."),
    _field("--fold", int,
           "Leave every other image out, beginning with the first, 0, or the second, 1.  "
           "[default: none]"),
    _field("--seed", int, "Of weights, order, augmentation and Gumbel noise."),
    _field("--val-interval", int, "Epochs between validations."),
)  # fmt: skip
DISTILLING = (
    _field("--candidates", str,
           f"Crops to choose among, some of the run's. {SETS}  [default: the run's]"),
    _field("--proposer", click.Choice(PROPOSERS), "What scores the crops."),
    _field("--position-prior/--no-position-prior", bool,
           "Give each crop a learnt score of its own, whatever it shows."),
    _field("--glimpse-size", int, "Side of a glimpse, px.  [default: the shards']"),
    _field("--proposer-channels", Joined(int),
           "Of the proposer's convolutions.  [default: 8,16,32; of a map by its glimpse]"),
    _field("--proposer-lr", float, "Highest learning rate of AdamW.", DistillConfig),
    _field("--epochs", int, "Passes over the loss matrix.", DistillConfig),
    _field("-b --batch-size", int, "Images a step.", DistillConfig),
    _field("--balance", float,
           "Weight of the entropy of the batch's mean choice, falling to 0 over the epochs.",
           DistillConfig),
    _field("--weight-decay", float, "Of AdamW.", DistillConfig),
    _field("--vflip", float, "Probability of mirroring an image upside down, 0 to 1.",
           DistillConfig),
    _field("--seed", int, "Of weights, order and mirroring.  [default: the run's]", DistillConfig),
)  # fmt: skip
ESTIMATING = (
    _field("--candidates", str,
           f"Crops to choose among. {SETS}  [default: the shards']"),
    _field("--model", str, "Small classifier, by its name in timm.", HeadroomConfig),
    _field("--epochs", int, "Passes of each classifier over its images.", HeadroomConfig),
    _field("-b --batch-size", int, "Images a step."),
    _field("--lr", float, "Highest learning rate."),
    _field("--limit", int, "Images of each split to use, at most.", HeadroomConfig),
    _field("--seed", int, "Of weights, order, augmentation and resamples."),
)  # fmt: skip
MACHINE = (
    _field(
        "-j --workers",
        int,
        "Threads that read samples: one for each CPU this process may use, at most 8.",
    ),
    _field("--device", click.Choice(DEVICES), "auto takes a GPU if there is one."),
)


def with_options(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    """Give a command some of these options."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
