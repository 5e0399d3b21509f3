"""What several commands share: arguments, options, and progress that rank 0 alone shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pipeline.command.console import shown_progress
from pipeline.command.options import options_of
from pipeline.common.progress import SILENT, Progress
from training.config import PROFILE_NAMES, TrainConfig

PATH = click.Path(path_type=Path)
RUN = click.argument("run", type=PATH)
FOLDERS = click.Path(file_okay=False).shell_complete
# A Path would make one slash of an address's two.
SHARDS = click.argument("shards", shell_complete=FOLDERS)
RUN_SHARDS = click.option(
    "--shards",
    shell_complete=FOLDERS,
    help="Folder or address of shards.  [default: where the run found them]",
)
OUTPUT = click.option(
    "--output", type=PATH, default=Path("runs"), show_default=True, help="Folder of the runs."
)
MACHINE = options_of(TrainConfig, "workers", "device")
DEVICE = options_of(TrainConfig, "device")
PROFILE = click.option(
    "--profile",
    type=click.Choice(PROFILE_NAMES),
    default="quick",
    show_default=True,
    help="How much to run.",
)


@contextmanager
def rank_progress(is_main: bool) -> Iterator[Progress]:
    """Show progress on rank 0, and nothing on the others."""
    if is_main:
        with shown_progress("images/s") as progress:
            yield progress
    else:
        yield SILENT
