"""The pictures of the READMEs are what `make figures` draws from the records beside them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, ImageChops

from pipeline.cli.main import main as srp_data
from training.cli.train import main as srp_train

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", REPO / "training/results/figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_charts_follow_from_the_records(figures: ModuleType) -> None:
    accuracy, loaders = figures.SCATTER / "accuracy.svg", figures.LOADERS / "load.svg"
    assert figures.accuracy() == accuracy.read_text(encoding="utf-8")
    assert figures.loaders() == loaders.read_text(encoding="utf-8")


@pytest.mark.sweep
def test_the_overview_is_what_the_programs_draw(figures: ModuleType, tmp_path: Path) -> None:
    figures.overview(tmp_path / "overview.png")
    ours, theirs = (
        Image.open(path).convert("RGB")
        for path in (figures.RESULTS / "overview.png", tmp_path / "overview.png")
    )
    assert ours.size == theirs.size
    assert ImageChops.difference(ours, theirs).getbbox() is None


def test_the_front_pages_picture_takes_commands_that_parse(
    figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {"srp-data": srp_data, "srp-train": srp_train}
    seen = []

    def run(program: str, name: str, *words: str) -> None:
        programs[program].commands[name].make_context(name, list(words))
        seen.append(name)

    monkeypatch.setattr(figures, "run", run)
    runs = tmp_path / "runs/chooser-s0"
    runs.mkdir(parents=True)
    (runs / "audit.png").write_bytes(b"drawn")
    figures.choices("data.tgz", tmp_path / "choices.png", tmp_path)
    assert seen == ["scatter", "build-shards", "build-shards", "from", "from", "from", "audit"]
    assert (tmp_path / "choices.png").read_bytes() == b"drawn"
