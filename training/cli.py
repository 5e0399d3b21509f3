"""srp-train: shards in, figures out. Options become configs; nothing is decided here."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import ConfigError, StoppedRunError
from pipeline.terminal import Commands, progress_bars
from training.config import (
    DEVICES,
    POLICIES,
    PROFILE_NAMES,
    SCHEDULES,
    RunPaths,
    TrainConfig,
)

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from training.table import Evaluation

PATH = click.Path(path_type=Path)
OUTPUT = click.option(
    "--output", type=PATH, default=Path("runs"), show_default=True, help="Folder of the runs."
)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 bug or diverged, 2 usage, 3 damaged shards, 130 interrupted.",
)
@click.version_option(package_name="srp")
def main() -> None:
    """Train and compare ways to choose the crop that a classifier sees."""


class Numbers(click.ParamType[Any]):
    """Numbers joined by commas."""

    def __init__(self, kind: type[int] | type[float], count: int | None = None) -> None:
        """Expect `count` numbers of a kind, or any number of them."""
        self.kind, self.count = kind, count
        self.name = ",".join(["N"] * count) if count else "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """Turn what was typed into a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers joined by commas.", param, ctx)
        if self.count and len(numbers) != self.count:
            self.fail(f"{value!r} is not {self.count} numbers joined by commas.", param, ctx)
        return numbers


def _field(names: str, kind: Any, text: str) -> Callable[[Any], Any]:
    """Make the option for one field of TrainConfig; its default is the field's own."""
    field = names.split()[-1].removeprefix("--").split("/")[0].replace("-", "_")
    default = getattr(TrainConfig, field)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default is not None
    return click.option(
        *names.split(), field, type=kind, default=default, show_default=shown, help=text
    )


_TRAINING = (
    _field("--policy", click.Choice(POLICIES), "How the crop is chosen."),
    _field("--candidates", str,
           "Crops to choose among: a set, or names joined by commas.  [default: the shards']"),
    _field("--model", str, "Classifier, by its name in timm."),
    _field("--glimpse-size", int, "Side of a glimpse, px.  [default: the shards']"),
    _field("--pad-glimpses/--no-pad-glimpses", bool,
           "Show the proposer glimpses padded to the crop's size, as the predecessor did."),
    _field("--proposer-channels", Numbers(int), "Of the proposer's convolutions."),
    _field("--tau-start", float, "Gumbel-Softmax temperature at the first step."),
    _field("--tau-end", float, "Gumbel-Softmax temperature at the last step."),
    _field("--balance", float, "Weight of the entropy of the batch's mean choice."),
    _field("--num-draws", int, "For `expected`: crops drawn an image; 0 takes all, exactly."),
    _field("--epochs", int, "Passes over the training split."),
    _field("-b --batch-size", int, "Images a step and process."),
    _field("--opt", str, "Optimizer, by its name in timm."),
    _field("--lr", float, "Highest learning rate."),
    _field("--momentum", float, "Of the optimizer; onecycle moves it from 0.95 to 0.85 and back."),
    _field("--weight-decay", float, "Of the optimizer; not applied to biases and norms."),
    _field("--clip-grad", float, "Largest norm of the gradient.  [default: any]"),
    _field("--sched", click.Choice(SCHEDULES), "Schedule of the learning rate."),
    _field("--warmup-epochs", int, "Linear warm-up of cosine and step, epochs."),
    _field("--decay-epochs", int, "Epochs between the decays of step."),
    _field("--decay-rate", float, "Factor of each decay of step."),
    _field("--smoothing", float, "Label smoothing, 0 to 1."),
    _field("--hflip", float, "Probability of mirroring an image, 0 to 1."),
    _field("--shift", int, "Largest shift of the classifier's input, px."),
    _field("--mean", Numbers(float, 3), "Subtracted from RGB in 0 to 1."),
    _field("--std", Numbers(float, 3), "What RGB is divided by then."),
    _field("--amp/--no-amp", bool, "Compute in bfloat16 where the device is fast at it."),
    _field("--channels-last/--no-channels-last", bool, "Keep tensors channels last in memory."),
    _field("--seed", int, "Of weights, order, augmentation and Gumbel noise."),
    _field("--val-interval", int, "Epochs between validations."),
)  # fmt: skip
_MACHINE = (
    _field("-j --workers", int, "Threads that read samples."),
    _field("--device", click.Choice(DEVICES), "auto takes a GPU if there is one."),
)


def _with(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@main.command("from")
@click.argument("shards", type=PATH)
@OUTPUT
@click.option("--experiment", help="Name of the run's folder.  [default: POLICY-sSEED]")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint, if any.")
@_with(_TRAINING)
@_with(_MACHINE)
def from_shards(
    shards: Path, output: Path, experiment: str | None, resume: bool, **options: Any
) -> None:
    """Train on SHARDS, a folder that srp-data build-shards wrote, and evaluate.

    SHARDS may also be a folder that holds one such folder. For several processes:
    torchrun --nproc-per-node 2 -m training from SHARDS
    """
    config = TrainConfig(**options)
    name = experiment or f"{config.policy}-s{config.seed}"
    if Path(name).name != name or name in (".", ".."):
        raise ConfigError(
            f"--experiment must be the name of one folder; got {name!r}. "
            "Name the folder above it with --output."
        )
    paths = RunPaths(folder=output / name)

    from training.data import Shards
    from training.distributed import started
    from training.loop import fit
    from training.progress import run_reporters

    opened = Shards.open(shards)
    with started(config.device) as process, _bars(process.is_main) as bars:
        on_progress, on_epoch = run_reporters(bars, config.epochs)
        try:
            record = fit(
                config,
                shards=opened,
                paths=paths,
                process=process,
                resume=resume,
                on_progress=on_progress,
                on_epoch=on_epoch,
            )
        except KeyboardInterrupt:
            raise StoppedRunError(
                f"interrupted in {paths.folder}. Add --resume to the same command to go on from "
                "its last finished epoch."
            ) from None
    if process.is_main and record.evaluation is not None:
        click.echo(_evaluation_text(record.evaluation, record.data.class_names))
        click.echo(f"run: {paths.folder}")


@main.command()
@click.argument("run", type=PATH)
@click.option("--shards", type=PATH, help="Folder of shards.  [default: where the run found them]")
@click.option("--candidates", help="Crops to score: a set, or names.  [default: the run's]")
@click.option(
    "--checkpoint",
    type=click.Choice(("last", "best")),
    default="last",
    show_default=True,
    help="best was picked by its accuracy on the very split that is scored here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@_with(_MACHINE)
def evaluate(
    run: Path,
    shards: Path | None,
    candidates: str | None,
    checkpoint: str,
    as_json: bool,
    **machine: Any,
) -> None:
    """Score RUN, a folder that training wrote, on the validation split.

    Prints top-1 of the chosen crop, of each crop always, of a random one, of the mean of all
    and of the best in hindsight; how often each crop is chosen; MACs; and top-1 by class.
    """
    from training.distributed import started
    from training.evaluate import evaluate_run

    with started(machine["device"]) as process, _bars(process.is_main) as bars:
        task = bars.add_task("scoring every crop", total=None, figures="") if bars else None

        def on_progress(done: int, total: int) -> None:
            if bars and task is not None:
                bars.update(task, completed=done, total=total)

        record, evaluation = evaluate_run(
            RunPaths(folder=run),
            shards_path=shards,
            candidates=candidates,
            checkpoint=checkpoint,
            workers=machine["workers"],
            process=process,
            on_progress=on_progress,
        )
    if process.is_main:
        names = record.data.class_names
        fields = json.dumps(dataclasses.asdict(evaluation), indent=1)
        click.echo(fields if as_json else _evaluation_text(evaluation, names))


@main.command()
@click.argument("shards", type=PATH)
@click.option(
    "--profile",
    type=click.Choice(PROFILE_NAMES),
    default="quick",
    show_default=True,
    help="How much to run.",
)
@OUTPUT
@_with(_MACHINE)
def study(shards: Path, profile: str, output: Path, **machine: Any) -> None:
    """Compare the predecessor, a better policy and fixed crops on SHARDS, over glimpse sizes.

    Every run leaves a record. Run the same command again to go on where it stopped.
    """
    from training.data import Shards
    from training.distributed import started
    from training.progress import StudyBars
    from training.study import PROFILES, plan_runs, run_study

    opened = Shards.open(shards)
    runs = plan_runs(PROFILES[profile], opened, **machine)
    with started(machine["device"]) as process, _bars(process.is_main) as bars:
        shown = StudyBars(bars, runs)
        records = run_study(
            runs, shards=opened, output=output, process=process, on_run=shown.on_run
        )
    for record in records if process.is_main else ():
        if record.evaluation is not None:
            click.echo(f"{record.name}: top-1 {record.evaluation.top1:.2f} %")


@main.command()
@click.argument("runs", type=PATH)
@click.option("--shards", type=PATH, help="Folder of shards, for the contact sheets.")
@click.option("-o", "--output", type=PATH, help="Page to write.  [default: RUNS/report.html]")
@click.option("--note", default="", help="What to say of the data in the first line.")
def report(runs: Path, shards: Path | None, output: Path | None, note: str) -> None:
    """Write one self-contained HTML page about the runs in the folder RUNS."""
    from training.report import write_report

    click.echo(str(write_report(runs, shards=shards, out=output, data_note=note)))


@contextmanager
def _bars(is_main: bool) -> Iterator["Bars | None"]:
    """Draw bars on rank 0, and nothing elsewhere."""
    if not is_main:
        yield None
        return
    with progress_bars("images/s", extra=("{task.fields[figures]}",)) as bars:
        yield bars


def _evaluation_text(evaluation: "Evaluation", class_names: tuple[str, ...]) -> str:
    """Lay an evaluation out for people."""
    fixed = zip([f"{name} always" for name in evaluation.crops], evaluation.top1_crops, strict=True)
    accuracies = [
        ("policy", evaluation.top1),
        *fixed,
        ("random crop", evaluation.top1_random),
        ("mean of all crops", evaluation.top1_mean),
        ("best crop in hindsight (oracle)", evaluation.top1_oracle),
    ]
    shares = [(name, 100 * share) for name, share in zip(
        evaluation.crops, evaluation.shares, strict=True)]  # fmt: skip
    costs = [
        ("proposer", evaluation.proposer_macs / 1e6),
        ("classifier", evaluation.classifier_macs / 1e6),
    ]
    classes = list(zip(class_names, evaluation.top1_classes, strict=True))
    lines = []
    for title, rows in (
        (f"top-1 of {evaluation.num_samples} images, %", accuracies),
        ("how often each crop is chosen, %", shares),
        ("cost of one image, million MACs", costs),
        ("top-1 by class, %", classes),
    ):
        lines += [title, *(f"  {name:<32} {figure:8.2f}" for name, figure in rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
