"""Rows that only another environment can measure, such as pillow-simd's."""

import subprocess
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from pipeline.bench.config import BenchConfig
from pipeline.command import results
from pipeline.command.results import Contender, Row, Turn
from pipeline.common.errors import ConfigError


def other_contenders(
    config: BenchConfig, tree: Path, python: Path, known: Collection[str]
) -> Iterator[Contender]:
    """Let the other environment's own bench measure it, once in each round.

    Args:
        config: Sizes and counts.
        tree: Folder of the images.
        python: The other environment's Python.
        known: Names of the rows that this environment measures.

    Raises:
        ConfigError: If it has no srp that can measure.
    """
    latest = _rows_of(config, tree, python)
    others = [row for name, row in latest.items() if name not in known]

    def measure(name: str, *, is_first: bool) -> Turn:
        if is_first:
            latest.update(_rows_of(config, tree, python))
        return Turn(latest[name].median)

    for row in others:
        yield Contender(
            row=replace(row, rates=(), median=None, ratios={}),
            measure=partial(measure, row.name, is_first=row is others[0]),
            against=tuple(row.ratios)[1:],  # not the first row there, which is not the first here
        )


def _rows_of(config: BenchConfig, tree: Path, python: Path) -> dict[str, Row]:
    """Run the bench of another environment once, on the same images."""
    options = {
        "--canvas-size": config.canvas_size,
        "--crop-size": config.crop_size,
        "--glimpse-size": config.glimpse_size,
        "--images": config.images,
        "--workers": config.workers,
        "--rounds": 1,
        "--json": "-",
    }
    command = [str(python), "-m", "pipeline.cli.main", "bench", "build", str(tree)]
    command += [str(part) for option in options.items() for part in option]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        reason = [f"exit status {done.returncode}", *done.stderr.strip().splitlines()][-1]
        if done.returncode == 0:
            reason = "it printed no figures"
            rows = results.rows_from_json(done.stdout)
            if rows and all(row.median for row in rows):
                return {row.name: row for row in rows}
    except OSError as error:
        reason = str(error.strerror)
    except msgspec.MsgspecError:
        pass
    raise ConfigError(
        f"--beside must be the Python of an environment with srp; got {python}: "
        f"{reason.rstrip('.')}. Make one with: make simd"
    )
