"""A real Ray on this machine, whose workers send their shards to a real S3 server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from planned import config, files
from poisoned import poison, write_poisoned
from served import s3_server

from pipeline.build.build import build_shards
from pipeline.engines import open_ray
from pipeline.parts.build_part import build_part
from pipeline.parts.merge import merge_parts
from pipeline.parts.plan import plan_parts
from pipeline.remote.address import RemoteFolder
from pipeline.write.worker import build_shard

REPO = Path(__file__).resolve().parents[3]
VICTIM = "train/dog/dog_003.JPEG"
OUT = RemoteFolder(scheme="s3", address="s3://bucket/mine")

pytestmark = [
    pytest.mark.sweep,  # Ray takes long to start
    pytest.mark.filterwarnings("default:::ray"),
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO:FutureWarning"),
]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bucket, as the folder it lies in; Ray's workers have this environment."""
    pytest.importorskip("ray", reason="needs the extra ray, which is not installed")
    open_ray()
    monkeypatch.setenv("PYTHONPATH", f"{REPO}:{REPO / 'tests/faults'}")
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda _: 3)
    monkeypatch.setattr("pipeline.build.build.build_shard", write_poisoned)
    bucket = tmp_path / "served/bucket"
    bucket.mkdir(parents=True)
    with s3_server(bucket.parent, monkeypatch):
        yield bucket


def test_a_worker_that_dies_costs_a_try_and_the_store_gets_the_files_of_a_local_build(
    bucket: Path, own_tree: Path, tmp_path: Path
) -> None:
    poison(own_tree / VICTIM, "kill", once=tmp_path / "marker")
    shutil.copytree(own_tree, bucket / "images")
    source, scratch = RemoteFolder(scheme="s3", address="s3://bucket/images"), tmp_path / "scratch"
    built = build_shards(config(source, OUT, engine="ray", workers=2, scratch=scratch))
    assert (tmp_path / "marker").exists(), "no worker was lost"
    assert len(built.retried) == 1
    assert not list(scratch.iterdir())
    build_shards(config(own_tree, tmp_path / "local"))
    assert files(bucket / "mine") == files(tmp_path / "local")
    again = build_shards(config(own_tree, OUT, engine="ray", workers=2, scratch=scratch))
    assert len(again.reused) == 9


def test_parts_at_an_address_are_built_on_ray_and_here(
    bucket: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.build._run_here", lambda tasks, *_: map(build_shard, tasks))
    scratch = tmp_path / "scratch"
    plan_parts(config(image_tree, OUT))
    build_part(config(image_tree, OUT, engine="ray", workers=2, scratch=scratch), "1/2")
    build_part(config(image_tree, OUT, scratch=scratch), "2/2")
    merge_parts(OUT, max_rejects=0, workers=1)
    build_shards(config(image_tree, tmp_path / "local"))
    assert files(bucket / "mine") == files(tmp_path / "local")
