"""What is refused before a Ray cluster is started or joined; none of it starts one."""

import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned import config
from served import s3_server

from pipeline.build.build import build_shards
from pipeline.build.landmarks import landmarks
from pipeline.common.errors import ConfigError
from pipeline.format import manifest
from pipeline.format.sample import PlannedShard
from pipeline.remote import objects, remote_file
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import list_objects
from pipeline.sources.image import SourceImage
from pipeline.write.place import FolderPlace, StorePlace
from pipeline.write.worker import Task


def build(source: Path, out: Path, **options: Any) -> None:
    build_shards(config(source, out, engine="ray", **options))
    raise AssertionError("it was built")


def test_without_ray_the_extra_is_named(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("on_ray", "cluster", "ray_task"):
        monkeypatch.delitem(sys.modules, f"pipeline.engines.{name}", raising=False)
        monkeypatch.delattr(f"pipeline.engines.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ConfigError,
        match=r"^--engine ray needs Ray; got import of ray halted; .* Install it with: pip install "
        r"'srp\[ray\]'$",
    ):
        build(image_tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["here", "ray://head:10001", "head", "head:", "a b:1"])
def test_what_is_no_address_of_a_cluster_is_refused(
    address: str, image_tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"must be auto or HOST:PORT; got '{address}'"):
        build(image_tree, tmp_path / "out", ray_address=address)
    assert not (tmp_path / "out").exists()


def test_an_address_where_nothing_listens_is_refused_at_once(
    image_tree: Path, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            ConfigError,
            match=rf"must be where a Ray cluster listens; got {address}: .* refused\. Check the ",
        ):
            build(image_tree, tmp_path / "out", ray_address=address)
    assert not (tmp_path / "out").exists()


def test_an_address_without_the_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--ray-address needs --engine ray; got auto with --e"):
        config(tmp_path, tmp_path, ray_address="auto")


@pytest.fixture
def task(canvas_shards: Path, image_tree: Path, tmp_path: Path) -> Task:
    """A shard of one image."""
    file = image_tree / "train/cat/cat_000.JPEG"
    image = SourceImage(
        path="train/cat/cat_000.JPEG", split="train", class_name="cat",
        size=file.stat().st_size, file=str(file), offset=None,
    )  # fmt: skip
    shard = PlannedShard(split="train", index=0, keys=("cat/cat_000",))
    spec = manifest.load(canvas_shards).spec
    return Task(FolderPlace(tmp_path, tmp_path), spec, 1, shard, (image,), ("cat",), 0)


def fault(task: Task, **changed: Any) -> str:
    with landmarks([task]) as found:
        return found._replace(**changed)()


def test_a_node_that_finds_everything_has_no_fault_and_no_token_is_left(
    task: Task, tmp_path: Path
) -> None:
    assert fault(task) == ""
    assert not list(tmp_path.iterdir())


def test_a_node_says_which_folder_is_another_or_missing(task: Task, tmp_path: Path) -> None:
    assert fault(task, text="of another build") == f"another {tmp_path}"
    missing = "not mounted/.token"
    assert fault(task, token=missing) == f"No such file or directory: {tmp_path}/{missing}"
    assert fault(task, sha256="0" * 64) == f"another {task.images[0].file}"


def test_a_node_says_why_it_would_not_write_to_the_same_store(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served/bucket").mkdir(parents=True)
    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.0)
    with s3_server(tmp_path / "served", monkeypatch):
        store = RemoteFolder(scheme="s3", address="s3://bucket/mine")
        place = StorePlace(store, "f" * 64, tmp_path / "scratch")
        sent = task._replace(place=place)
        records = f"s3://bucket/mine/.build/{'f' * 64}"
        assert fault(sent) == ""
        assert fault(sent, text="of another build") == f"another {records}"
        missing = f"{tmp_path.name}/none"
        assert fault(sent, token=missing) == f"No such file or directory: {records}/{missing}"
        (tmp_path / "file").touch()
        unwritable = place._replace(scratch=tmp_path / "file")
        assert fault(sent, place=unwritable) == (
            f"--scratch must be a folder that can be written; got {tmp_path}/file: File exists"
        )
        gone = replace(task.images[0], store=store, file="train/none.jpg")
        assert fault(sent, image=gone) == (
            "No such file or directory: s3://bucket/mine/train/none.jpg"
        )
        assert not list_objects(store)
        with landmarks([sent]) as found:
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
            remote_file._filesystem.cache_clear()
            assert re.match(rf"cannot read {records}/\.token-\w+: \w*Error: ", found())
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
            remote_file._filesystem.cache_clear()


def test_a_node_names_another_srp_and_another_decoder(task: Task) -> None:
    assert fault(task, version="9.9").endswith(", not 9.9,")
    other = replace(task.spec, decoder_library="Pillow 1.0")
    assert fault(task, spec=other).endswith(", not Pillow 1.0,")
