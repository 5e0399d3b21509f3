"""srp-train: shards in, figures out. Options become configs; nothing is decided here."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.terminal import Commands, console, progress_bars
from training.config import (
    DEVICES,
    POLICIES,
    SCHEDULES,
    RunPaths,
    TrainConfig,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress as Bars

    from training.loop import OnEpoch, OnProgress, Progress
    from training.records import EpochRecord

PATH = click.Path(path_type=Path)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 bug or diverged, 2 usage, 3 damaged shards, 130 interrupted.",
)
@click.version_option(package_name="srp")
def main() -> None:
    """Train and compare ways to choose the crop that a classifier sees."""


class _Numbers(click.ParamType[Any]):
    """Numbers joined by commas."""

    def __init__(self, kind: type[int] | type[float], count: int | None = None) -> None:
        self.kind, self.count = kind, count
        self.name = ",".join(["N"] * count) if count else "N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers joined by commas", param, ctx)
        if self.count and len(numbers) != self.count:
            self.fail(f"{value!r} is not {self.count} numbers", param, ctx)
        return numbers


def _default(value: object) -> str | bool:
    return ",".join(map(str, value)) if isinstance(value, tuple) else True


def _options(*rows: tuple[str, str, Any, str]) -> Callable[[Any], Any]:
    """Add an option for each field of TrainConfig; the defaults are the fields' own."""

    def decorate(function: Any) -> Any:
        for names, field, kind, text in reversed(rows):
            default = getattr(TrainConfig, field)
            function = click.option(
                *names.split(), field, type=kind, default=default, help=text,
                show_default=_default(default) if default is not None else False,
            )(function)  # fmt: skip
        return function

    return decorate


_TRAINING = _options(
    ("--policy", "policy", click.Choice(POLICIES), "How the crop is chosen."),
    ("--candidates", "candidates", str,
     "Crops to choose among, a set or names joined by commas.  [default: all in the shards]"),
    ("--model", "model", str, "Classifier, by its name in timm."),
    ("--glimpse-size", "glimpse_size", int, "Side of a glimpse, px.  [default: the shards']"),
    ("--pad-glimpses/--no-pad-glimpses", "pad_glimpses", bool,
     "Show the proposer glimpses padded to the crop's size, as the predecessor did."),
    ("--proposer-channels", "proposer_channels", _Numbers(int), "Of the proposer's layers."),
    ("--tau-start", "tau_start", float, "Gumbel-Softmax temperature at the first step."),
    ("--tau-end", "tau_end", float, "Gumbel-Softmax temperature at the last step."),
    ("--balance", "balance", float, "Weight of the entropy of the batch's mean choice."),
    ("--num-draws", "num_draws", int, "For `expected`: crops drawn an image; 0 takes all."),
    ("--epochs", "epochs", int, "Passes over the training split."),
    ("-b --batch-size", "batch_size", int, "Images a step and process."),
    ("--opt", "opt", str, "Optimizer, by its name in timm."),
    ("--lr", "lr", float, "Highest learning rate."),
    ("--momentum", "momentum", float, "Of the optimizer."),
    ("--weight-decay", "weight_decay", float, "Of the optimizer."),
    ("--clip-grad", "clip_grad", float, "Largest norm of the gradient.  [default: any]"),
    ("--sched", "sched", click.Choice(SCHEDULES), "Schedule of the learning rate."),
    ("--warmup-epochs", "warmup_epochs", int, "Linear warm-up of cosine and step, epochs."),
    ("--decay-epochs", "decay_epochs", int, "Epochs between the decays of step."),
    ("--decay-rate", "decay_rate", float, "Factor of each decay of step."),
    ("--smoothing", "smoothing", float, "Label smoothing, 0 to 1."),
    ("--hflip", "hflip", float, "Probability of mirroring an image, 0 to 1."),
    ("--shift", "shift", int, "Largest shift of the classifier's input, px."),
    ("--mean", "mean", _Numbers(float, 3), "Subtracted from RGB in 0 to 1."),
    ("--std", "std", _Numbers(float, 3), "What RGB is divided by then."),
    ("--amp/--no-amp", "amp", bool, "Compute in bfloat16 where the device is fast at it."),
    ("--channels-last/--no-channels-last", "channels_last", bool, "Memory format."),
    ("--seed", "seed", int, "Of weights, order, augmentation and Gumbel noise."),
    ("--val-interval", "val_interval", int, "Epochs between validations."),
)  # fmt: skip
_MACHINE = _options(
    ("-j --workers", "workers", int, "Threads that read samples."),
    ("--device", "device", click.Choice(DEVICES), "auto takes a GPU if there is one."),
)


@main.command("from")
@click.argument("shards", type=PATH)
@click.option(
    "--output", type=PATH, default=Path("runs"), show_default=True, help="Folder of the runs."
)
@click.option("--experiment", help="Name of the run's folder.  [default: POLICY-sSEED]")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint, if any.")
@_TRAINING
@_MACHINE
def from_shards(
    shards: Path, output: Path, experiment: str | None, resume: bool, **options: Any
) -> None:
    """Train on SHARDS, a folder that srp-data build-shards wrote, and evaluate.

    SHARDS may also be a folder that holds one such folder. Several processes:
    torchrun --nproc-per-node 2 -m training from SHARDS
    """
    config = TrainConfig(**options)

    from training.data import Shards
    from training.distributed import started
    from training.loop import fit

    opened = Shards.open(shards)
    paths = RunPaths(folder=output / (experiment or f"{config.policy}-s{config.seed}"))
    with started(config.device) as process, ExitStack() as stack:
        on_progress, on_epoch = stack.enter_context(_run_bars(config, quiet=not process.is_main))
        record = fit(
            config,
            shards=opened,
            paths=paths,
            process=process,
            resume=resume,
            on_progress=on_progress,
            on_epoch=on_epoch,
        )
    if process.is_main and record.evaluation is not None:
        click.echo(
            f"top-1 {record.evaluation.top1:.2f} % of {record.evaluation.num_samples} images"
        )
        click.echo(str(paths.folder))


@contextmanager
def _run_bars(config: TrainConfig, *, quiet: bool) -> Iterator[tuple[OnProgress, OnEpoch]]:
    if quiet:
        yield (lambda _: None), (lambda _: None)
        return
    with progress_bars("images/s", extra=("{task.fields[figures]}",)) as bars:
        yield run_reporters(bars, config.epochs)


def run_reporters(bars: Bars, epochs: int) -> tuple[OnProgress, OnEpoch]:
    """Show one run: a bar for all of its training, one for each evaluation, a line an epoch."""
    tasks: dict[str, Any] = {}

    def on_progress(now: Progress) -> None:
        whole = epochs if now.stage == "train" else 1
        before = (now.epoch - 1) * now.total if now.stage == "train" else 0
        label = {"train": f"epoch {now.epoch}/{epochs}", "val": "validating",
                 "table": "scoring every crop"}[now.stage]  # fmt: skip
        figures = "" if now.loss is None else f"loss {now.loss:.3f}  top-1 {now.top1:.1f} %"
        if now.stage not in tasks:
            tasks[now.stage] = bars.add_task(label, total=now.total * whole, figures="")
        done = before + now.done
        bars.update(tasks[now.stage], completed=done, description=label, figures=figures)

    def on_epoch(done: EpochRecord) -> None:
        val = "" if done.val_top1 is None else f"  val top-1 {done.val_top1:.2f} %"
        console().print(
            f"epoch {done.epoch}/{epochs}  loss {done.train_loss:.4f}  train top-1 "
            f"{done.train_top1:.2f} %{val}  {done.images_per_s:.0f} images/s"
        )
        for stage in [stage for stage in tasks if stage != "train"]:
            bars.remove_task(tasks.pop(stage))

    return on_progress, on_epoch


if __name__ == "__main__":
    sys.exit(main())
