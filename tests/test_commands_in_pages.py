"""The commands that READMEs print: each one parses, and runs on drawn scenes or says why not."""

import shlex
import tarfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.main import main as srp_data
from pipeline.datasets.config import SceneConfig
from pipeline.datasets.scenes import draw_dataset
from training.cli.train import main as srp_train

REPO = Path(__file__).resolve().parents[1]
PROGRAMS = {"srp-data": srp_data, "srp-train": srp_train}
NOT_RUN = {  # by the first words: the reason
    "make reproduce": "tests/test_end_to_end.py runs it",
    "make test": "it runs this test",
    "make figures": "tests/test_figures.py runs its parts",
    "make simd": "it makes an environment of its own; CI runs it",
    "make gpu-check": "it needs a GPU",
    "make bench-load": "it makes environments of its own and measures for minutes",
    "make bench-envs": "it makes environments of its own",
    "srp-data bench": "it measures for minutes; tests/pipeline/bench runs its parts",
    "srp-data download": "it needs a network; tests/pipeline/datasets serves it one",
    "srp-data plan": "tests/pipeline/parts/test_array.py runs it",
    "srp-data merge": "tests/pipeline/parts/test_array.py runs it",
    "srp-data build-shards my-images s3://bucket/mine": "tests/pipeline/build has a server",
    "srp-data build-shards s3://bucket/images.tgz": "tests/pipeline/build has a server",
    "srp-data build-shards my-images hf://datasets/OWNER/NAME": "tests/pipeline/build runs it",
    "hf repos create": "it needs the Hub; the stand-in has a dataset",
    "srp-data build-shards s3://bucket/images": "tests/pipeline/parts and engines have a server",
    "srp-data verify s3://bucket/mine": "tests/pipeline/build has a server",
    "srp-data build-shards my-images shards/mine --engine ray": "tests/pipeline/engines runs Ray",
    "sbatch": "it needs Slurm; tests/pipeline/parts/test_array.py runs its script without",
    "tensorboard": "it serves pages until it is stopped",
    "srun": "it needs a cluster",
    "torchrun": "it starts processes; tests/training/data/test_processes.py starts such",
    "uv": "it resolves packages, which needs a network",
    "srp-train headroom shards/mine": "the front page's sequence, where it runs",
    "srp-train audit runs/some-run": "a run's name stands for the reader's own",
}
SEQUENCES = {  # by page: what is added to its commands so that they take seconds
    "README.md": {
        "srp-data build-shards": "--canvas-size 48 --crop-size 32 --glimpse-size 16 -j 1",
        "srp-train headroom": "--epochs 1 --batch-size 4 -j 1",
        "srp-train from": "--epochs 2 --batch-size 4 --model test_resnet -j 1",
        "srp-train distill": "--epochs 1 --batch-size 4 -j 1",
    },
    "training/results/README.md": {
        "srp-train from": "--epochs 2 -j 1",
        "srp-train study": "--epochs 1 --seeds 0 -j 1",
    },
}


def commands_of(page: Path) -> list[list[str]]:
    """List the words of each command in a page's sh blocks."""
    blocks = page.read_text(encoding="utf-8").split("```sh\n")[1:]
    text = "\n".join(block.split("```")[0] for block in blocks).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [words for words in lines if words]


PAGES = [
    path for top in (".", "pipeline/**", "training/**", "shards")
    for path in sorted(REPO.glob(f"{top}/README.md")) if "```sh" in path.read_text("utf-8")
]  # fmt: skip
PRINTED = [(page, words) for page in PAGES for words in commands_of(page)]


def starts(words: list[str], prefix: str) -> bool:
    return words[: len(prefix.split())] == prefix.split()


def is_run(page: Path, words: list[str]) -> bool:
    name = str(page.relative_to(REPO))
    own = {"srp-train headroom shards/mine"} if name == "README.md" else set()
    return name in SEQUENCES and not any(starts(words, each) for each in NOT_RUN.keys() - own)


@pytest.mark.parametrize(("page", "words"), PRINTED, ids=lambda value: " ".join(value)[:60]
                         if isinstance(value, list) else value.parent.name)  # fmt: skip
def test_every_printed_command_parses_and_is_run_or_has_a_reason(
    page: Path, words: list[str]
) -> None:
    program, *rest = words
    if program in PROGRAMS:
        command: click.Command = PROGRAMS[program]
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        command.make_context(words[1], rest)
    assert is_run(page, words) or any(starts(words, prefix) for prefix in NOT_RUN)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Drawn scenes under the names that the pages give to the reader's images."""
    draw_dataset(SceneConfig(out=tmp_path / "my-images", train=2, val=1, size_px=64))
    draw_dataset(SceneConfig(out=tmp_path / "imagenette2", train=18, val=2, size_px=96))
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/imagenette2.tgz", "w:gz") as archive:
        archive.add(tmp_path / "imagenette2", arcname="imagenette2")
    return tmp_path


@pytest.mark.sweep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_pages_commands_run_one_after_another(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    ran = 0
    for words in commands_of(REPO / name):
        if not is_run(REPO / name, words):
            continue
        added = next((more for key, more in SEQUENCES[name].items() if starts(words, key)), "")
        result = CliRunner().invoke(PROGRAMS[words[0]], [*words[1:], *added.split()])
        assert result.exit_code == 0, (words, result.output, result.exception)
        ran += 1
    assert ran > 5
