import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.common.cpus import num_usable

REPO = Path(__file__).resolve().parents[3]
DEFAULTS = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
from pathlib import Path
from pipeline.bench.config import BenchConfig, LoadBenchConfig, ScaleBenchConfig
from pipeline.command.results import to_json
from pipeline.build.prepare import threads_of
from pipeline.build.config import BuildConfig
from pipeline.datasets.config import ScatterConfig
from pipeline.common.cpus import num_usable
configs = (BuildConfig, ScatterConfig, BenchConfig, LoadBenchConfig, ScaleBenchConfig)
workers = [c.workers for c in configs]
num_threads = threads_of(BuildConfig(source=Path(), out=Path(), decoder="dali"))
machine = to_json([], setting={})["machine"]
print(num_usable(), *workers, num_threads, machine["cores"])
"""
TRAINERS = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
from training.config import TrainConfig
print(TrainConfig.workers)
"""
ONE_CPU = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system binds no process to some of its CPUs"
)


def on_one_cpu(code: str) -> list[str]:
    """Run Python where it may use one CPU, and give the words that it prints."""
    cpu = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", code, str(cpu)]
    done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_there_are_no_more_cpus_for_us_than_there_are() -> None:
    assert 1 <= num_usable() <= (os.cpu_count() or 1)


@ONE_CPU
def test_a_process_that_may_use_one_cpu_has_one_of_everything_by_default() -> None:
    assert on_one_cpu(DEFAULTS) == ["1"] * 8


@ONE_CPU
def test_so_has_the_trainer() -> None:
    pytest.importorskip("torch", reason="needs the extra train, which is not installed")
    assert on_one_cpu(TRAINERS) == ["1"]


@pytest.mark.parametrize(
    "command", ["build-shards", "scatter", "verify", "bench build", "bench load", "bench scale"]
)
def test_the_help_says_which_cpus_are_counted(command: str) -> None:
    shown = CliRunner().invoke(main, [*command.split(), "--help"]).output
    assert "[default: (CPUs this process may use)" in " ".join(shown.split())
