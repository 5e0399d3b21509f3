"""srp-train: shards in, figures out. Options become configs; nothing is decided here."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.command.console import AS_JSON, Commands, Resumable
from pipeline.command.options import Joined, options_of
from pipeline.command.origins import file_option
from pipeline.common.errors import ConfigError
from training.choose.config import DistillConfig
from training.cli.bench import bench
from training.cli.export import export
from training.cli.headroom import headroom
from training.cli.judge import audit, evaluate
from training.cli.options import (
    MACHINE,
    OUTPUT,
    PATH,
    PROFILE,
    RUN,
    RUN_SHARDS,
    SHARDS,
    rank_progress,
)
from training.cli.predict import predict
from training.cli.sizes import sizes
from training.config import TrainConfig, check_used

if TYPE_CHECKING:
    from training.saved.record import RunRecord

_COMMANDLINE = click.core.ParameterSource.COMMANDLINE
LONGEST_NAME = 255  # bytes; what the file systems of Linux take


@click.group(
    cls=Commands,
    extra="srp[train]",
    variables="SRP_TRAIN",
    torchrun="-m training",
)
@click.version_option(package_name="srp")
def main() -> None:
    """Train and compare ways to choose the crop that a classifier sees."""


main.add_command(evaluate)
main.add_command(audit)
main.add_command(predict)
main.add_command(export)
main.add_command(headroom)
main.add_command(sizes)
main.add_command(bench)


@main.command("from", cls=Resumable)
@SHARDS
@file_option(TrainConfig)
@click.option(
    "--cache",
    type=PATH,
    help="Folder that keeps shards of an address.  [default: srp/shards in XDG_CACHE_HOME or "
    "~/.cache]",
)
@click.option(
    "--cache-mib",
    type=click.IntRange(1),
    help="Size that the cache should not exceed, MiB. If the training split is larger, samples are "
    "shuffled within windows of shards of half this size.  [default: no limit]",
)
@OUTPUT
@click.option("--experiment", help="Name of the run's folder.  [default: POLICY-sSEED]")
@click.option("--resume", is_flag=True, help="Continue from the run's last checkpoint, if any.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan, MACs, bytes, memory and estimated time, after a few steps in memory; "
    "write nothing.",
)
@AS_JSON
@options_of(TrainConfig)
def from_shards(
    shards: str, cache: Path | None, cache_mib: int | None, output: Path, experiment: str | None,
    resume: bool, dry_run: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train on SHARDS, and evaluate.

    SHARDS is a folder that srp-data build-shards wrote, or one that holds one such folder, or its
    address: http, https, s3 or gs. Shards of an address are fetched when they are needed. The
    default policy trains in four stages: classifiers of random crops on half of the images each,
    their losses on the crops of the other half, a proposer fitted to these losses, and the
    classifier on the crops that the proposer chooses. For several processes:
    torchrun --nproc-per-node 2 -m training from SHARDS
    """
    config = TrainConfig(**options)
    context = click.get_current_context()
    typed = [name for name in options if context.get_parameter_source(name) is _COMMANDLINE]
    check_used(config, typed)  # also where the default was typed
    folder = _run_folder(output, experiment or f"{config.policy}-s{config.seed}")

    from pipeline import ShardFolder
    from training.choose.method import train
    from training.data.processes import require_one, started
    from training.report.terminal import plan_text
    from training.saved.folder import RunPaths
    from training.study.dry_run import plan_run

    opened = ShardFolder.open(shards, cache=cache, cache_mib=cache_mib)
    if config.dev:
        opened = opened.with_dev()
    with started(config.device) as process, rank_progress(process.is_main) as progress:
        asked: dict[str, Any] = {
            "shards": opened, "paths": RunPaths(folder=folder), "process": process,
            "resume": resume, "progress": progress,
        }  # fmt: skip
        if dry_run:
            require_one(process, "a dry run")
            plan = plan_run(config, **asked)
        else:
            record = train(config, **asked)
    if dry_run:
        click.echo(json.dumps(plan.to_json(), indent=1) if as_json else plan_text(plan))
    elif process.is_main:
        _tell(record, folder, as_json=as_json)


def _tell(record: "RunRecord", folder: Path, *, as_json: bool) -> None:
    """Print what a finished run reached."""
    from training.report.terminal import choice_text, evaluation_text

    if record.evaluation is None:
        return
    if as_json:
        evaluation = dataclasses.asdict(record.evaluation)
        click.echo(json.dumps({"run": str(folder), **evaluation}, indent=1))
        return
    click.echo(evaluation_text(record.evaluation, record.data.class_names))
    if record.config.selects:
        click.echo(choice_text(record.evaluation))
    click.echo(f"run: {folder}")


def _run_folder(output: Path, name: str) -> Path:
    if Path(name).name != name or name in (".", ".."):
        raise ConfigError(
            f"--experiment must be the name of one folder; got {name!r}. "
            "Name the folder above it with --output."
        )
    if not name.isprintable():
        raise ConfigError(
            f"--experiment must hold printable characters alone; got {name[:50]!r}. "
            "Leave out line breaks and the like."
        )
    num_bytes = len(name.encode())
    if num_bytes > LONGEST_NAME:
        raise ConfigError(
            f"--experiment must have at most {LONGEST_NAME} bytes, as names of folders must; got "
            f"{num_bytes} in {name[:50]}... Shorten it."
        )
    return output / name


@main.command(cls=Resumable)
@RUN
@RUN_SHARDS
@OUTPUT
@click.option(
    "--experiment",
    help="Name of the new run's folder.  [default: distilled-PROPOSER-sSEED, with the options that "
    "are not the defaults: distilled-map-prior-g64-s0]",
)
@AS_JSON
@options_of(DistillConfig)
@MACHINE
def distill(
    run: Path, shards: str | None, output: Path, experiment: str | None, as_json: bool,
    workers: int, device: str, **options: Any,
) -> None:  # fmt: skip
    """Fit a proposer to RUN's out-of-fold losses.

    RUN was trained with --policy distilled, whose folder holds these losses, or with --policy
    random. Then, the first time, two classifiers are trained on half of the images each, and each
    classifies the crops of the other half, which takes as long as RUN did. The logits are kept in
    RUN's folder: any other proposer, of any glimpse size, is fitted to them in minutes.
    """
    from training.choose.distill import distill as distill_run
    from training.choose.distill import distilled_config
    from training.data.processes import started
    from training.run.load import shards_of
    from training.saved.folder import RunPaths
    from training.saved.record import load_record

    wanted = DistillConfig(**options)
    base = load_record(RunPaths(folder=run).record)
    seed = distilled_config(base.config, wanted).seed
    folder = _run_folder(output, experiment or f"{wanted.arm}-s{seed}")
    with started(device) as process, rank_progress(process.is_main) as progress:
        record = distill_run(
            RunPaths(folder=run),
            wanted,
            shards=shards_of(base, shards),
            paths=RunPaths(folder=folder),
            process=process,
            workers=workers,
            progress=progress,
        )
    _tell(record, folder, as_json=as_json)


@main.command(cls=Resumable)
@SHARDS
@PROFILE
@OUTPUT
@click.option(
    "--arms", type=Joined(str), help="Arms to run, with the arms they need.  [default: all]"
)
@click.option("--seeds", type=Joined(int), help="Seeds of each arm.  [default: the profile's]")
@click.option(
    "--epochs", type=click.IntRange(1), help="Epochs of one round.  [default: the profile's]"
)
@click.option(
    "--initial-checkpoint",
    default="",
    help="Run whose classifier every run begins with; {seed} and {arm} are replaced by the run's "
    "seed and the name of its arm.  [default: none]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Runs that are trained side by side, each with its share of the CPUs. How many threads a "
    "run has changes its figures in the last digits.  [default: CPUs this process may use; 1 on a "
    "GPU or under torchrun]",
)
@AS_JSON
@MACHINE
def study(
    shards: str, profile: str, output: Path, as_json: bool, jobs: int | None, **options: Any
) -> None:
    """Compare ways to choose on SHARDS.

    The profiles smoke and quick ask the short question: the whole image, the centre, the chooser,
    the predecessor. full compares the predecessor and its kind over glimpse sizes; choosing and
    choosing-64 fit proposers of every kind. Every run leaves a record. The same command resumes a
    study.
    """
    from pipeline import ShardFolder
    from training.data.processes import started
    from training.study.profiles import PROFILES
    from training.study.runner import plan_runs, run_study

    opened = ShardFolder.open(shards)
    runs = plan_runs(PROFILES[profile], opened, **options)
    with started(options["device"]) as process, rank_progress(process.is_main) as progress:
        records = run_study(
            runs, shards=opened, output=output, process=process, jobs=jobs, progress=progress
        )
    finished = [(r.name, r.evaluation.top1) for r in records if r.evaluation is not None]
    if process.is_main and as_json:
        click.echo(json.dumps({"folder": str(output), "top1": dict(finished)}, indent=1))
    elif process.is_main:
        click.echo("\n".join(f"{name}: top-1 {top1:.2f} %" for name, top1 in finished))


@main.command()
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option(
    "--shards",
    multiple=True,
    help="Folder or address of shards, for the contact sheets; of a folder with runs on several "
    "only its own are shown. May be repeated.",
)
@click.option(
    "-o", "--output", type=PATH, help="Page to write.  [default: report.html in each RUNS]"
)
@click.option(
    "--note", multiple=True, help="Name of the data, for the first line; one for each RUNS."
)
def report(
    runs: tuple[Path, ...], shards: tuple[str, ...], output: Path | None, note: tuple[str, ...]
) -> None:
    """Write one HTML page about runs.

    RUNS is a folder of runs; there may be several. The page is one file that loads nothing. A JSON
    file next to it holds its figures. Only runs on the same shards are compared: each data set has
    a page, which begins with the answers for all; several in one folder are named after their
    shards.
    """
    from training.data.processes import require_one, started
    from training.report.study_page import write_study

    with started("cpu") as process:
        require_one(process, "a report")
        for page in write_study(runs, shards=shards, out=output, notes=note):
            click.echo(str(page))


if __name__ == "__main__":
    sys.exit(main())
