"""Give what only another environment can measure, such as pillow-simd, its turns in the bench."""

import json
import subprocess
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from pipeline.bench import results
from pipeline.bench.config import BenchConfig
from pipeline.bench.results import Contender, Row
from pipeline.common.errors import ConfigError


def beside(
    config: BenchConfig, tree: Path, python: Path, known: Collection[str]
) -> Iterator[Contender]:
    """Let the other environment's own bench measure it, once in each round.

    Args:
        config: Sizes and counts.
        tree: The images.
        python: Of the other environment.
        known: Names of contenders that this environment has as well.

    Raises:
        ConfigError: If it has no srp that can measure.
    """
    latest = _rows_of(config, tree, python)
    others = [row for name, row in latest.items() if name not in known]

    def measure(name: str, *, is_first: bool) -> float:
        if is_first:
            latest.update(_rows_of(config, tree, python))
        return latest[name].median

    for row in others:
        yield Contender(
            name=row.name,
            measure=partial(measure, row.name, is_first=row is others[0]),
            against=row.against,
            differences=row.differences,
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
        if done.returncode == 0:
            rows = map(results.row_from_json, json.loads(done.stdout)["rows"])
            return {row.name: row for row in rows}
        reason = [f"exit status {done.returncode}", *done.stderr.strip().splitlines()][-1]
    except OSError as error:
        reason = str(error.strerror)
    except (ValueError, KeyError, TypeError):
        reason = "it printed no figures"
    raise ConfigError(
        f"--beside must be the python of an environment with srp; got {python}: "
        f"{reason.rstrip('.')}. Make one with: make simd"
    )
