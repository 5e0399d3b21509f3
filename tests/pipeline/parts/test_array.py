"""The page's commands and its sbatch script, with stand-ins that run array tasks as processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planned import config, files

from pipeline.build.build import build_shards

REPO = Path(__file__).resolve().parents[3]
PAGE = REPO / "pipeline/README.md"

SBATCH = """#!{python}
import os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

script = open(sys.argv[-1]).read()
first, last, at_once = map(int, re.search(r"#SBATCH --array=(\\d+)-(\\d+)%(\\d+)", script).groups())

def run(task):
    numbers = {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "1"}}
    return subprocess.run(["bash", sys.argv[-1]], env={{**os.environ, **numbers}}).returncode

with ThreadPoolExecutor(at_once) as pool:
    sys.exit(max(pool.map(run, range(first, last + 1))))
"""


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands: Slurm's, which are stand-ins, and ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    texts = {
        "sbatch": SBATCH.format(python=sys.executable),
        "srun": '#!/bin/sh\nexec "$@"\n',
        "srp-data": f'#!/bin/sh\nexec {sys.executable} -m pipeline.cli.main "$@"\n',
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def block(kind: str, *, after: str) -> str:
    """Give the first block of a kind after a heading of the page."""
    return PAGE.read_text("utf-8").split(after)[1].split(f"```{kind}\n")[1].split("```")[0]


@pytest.mark.sweep  # eight processes that import everything
def test_the_pages_array_of_five_tasks_gives_the_files_of_a_build_on_one_machine(
    image_tree: Path, commands: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_tree, tmp_path / "my-images")
    (tmp_path / "build.sbatch").write_text(block("bash", after="## More than one machine"))
    options = {"layout": "tensors", "canvas_size": 260, "crop_size": 224, "shard_mib": 2}
    variables = {
        f"SRP_DATA_{command}_{name.upper()}": str(value)
        for command in ("PLAN", "BUILD_SHARDS")
        for name, value in options.items()
    }
    path = f"{commands}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-ec", block("sh", after="## More than one machine")],
        cwd=tmp_path, env={**os.environ, **variables, "PATH": path, "PYTHONPATH": str(REPO)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("shards are finished, 0 of them before") == 5
    build_shards(config(image_tree, tmp_path / "whole", glimpse_size=64, **options))
    assert files(tmp_path / "shards/mine") == files(tmp_path / "whole")
