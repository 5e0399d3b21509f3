"""Plans of nine shards."""

from pathlib import Path

import pytest
from planned import config

from pipeline.build.build import build_shards
from pipeline.parts.plan import plan_parts


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images a shard: six shards of train/, three of val/."""
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda _: 3)


@pytest.fixture(scope="module")
def whole(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same build, made at once on this machine. Only read it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.build.prepare.samples_per_shard", lambda _: 3)
        build_shards(config(image_tree, out))
    return out


@pytest.fixture
def planned(image_tree: Path, tmp_path: Path, small_shards: None) -> Path:
    """A folder with a plan."""
    out = tmp_path / "out"
    plan_parts(config(image_tree, out))
    return out
