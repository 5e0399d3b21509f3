"""OUT at Google Cloud Storage: its real client, and a server in memory that speaks as it does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import at, google_server

from pipeline import SampleStream, ShardFolder
from pipeline.build import build
from pipeline.common.errors import DownloadError, StoreError
from pipeline.remote import objects, remote_file
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import remove_objects
from pipeline.remote.remote_file import filesystem
from pipeline.verify.verify import VERIFIED_NAME, verify_shards
from pipeline.write.worker import build_shard

OPTIONS = {"layout": "canvas", "candidates": "full+five", "shard_mib": 1}  # of canvas_shards


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteFolder]:
    """A folder of the bucket. What is built there is built by this process."""
    monkeypatch.setattr(build, "_run_here", lambda tasks, *_: map(build_shard, tasks))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with google_server(monkeypatch):
        yield at("gs://bucket/deep/mine")


def files(folder: RemoteFolder) -> dict[str, bytes]:
    store = filesystem("gs")
    prefix = folder.address.removeprefix("gs://")
    return {
        name.removeprefix(f"{prefix}/"): store.cat_file(name)
        for name in store.find(prefix, refresh=True)
    }


def built_files(folder: Path) -> dict[str, bytes]:
    """What a build left in a folder, without what `verify` noted there."""
    found = (path for path in folder.iterdir() if path.is_file() and path.name != VERIFIED_NAME)
    return {path.name: path.read_bytes() for path in found}


def test_google_gets_the_bytes_of_a_folder_and_gives_them_back(
    out: RemoteFolder, image_tree: Path, canvas_shards: Path, make_shards: Any, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    make_shards(image_tree, out, **OPTIONS)
    assert not caplog.records
    assert files(out) == built_files(canvas_shards)
    verify_shards(out.address, workers=1)
    ours, theirs = (
        [
            (sample.key, sample.originals.tobytes())
            for sample in SampleStream(place, "train").samples()
        ]
        for place in (canvas_shards, out.address)
    )
    assert ours == theirs
    reader = ShardFolder.open(out.address, cache=tmp_path / "kept").reader("val")
    assert reader.read(0).key == ShardFolder.open(canvas_shards).reader("val").read(0).key


def test_a_build_at_google_goes_on_by_the_digests_that_the_store_gives(
    out: RemoteFolder, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    built = make_shards(image_tree, out, **OPTIONS).manifest
    remove_objects(out, ["manifest.json", built.shards[0].name])
    again = make_shards(image_tree, out, **OPTIONS)
    assert again.manifest == built
    assert files(out) == built_files(canvas_shards)


@pytest.mark.usefixtures("out")
def test_a_bucket_that_is_not_there_is_one_line(image_tree: Path, make_shards: Any) -> None:
    with pytest.raises(StoreError, match=r"cannot write gs://nowhere/x/.*Check the address, the"):
        make_shards(image_tree, at("gs://nowhere/x"), **OPTIONS)


def test_a_google_that_nobody_answers_for_is_one_line_after_three_tries(
    out: RemoteFolder, image_tree: Path, make_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(objects.time, "sleep", waits.append)
    remote_file._filesystem.cache_clear()
    with pytest.raises(
        StoreError, match=r"UnreachableError: Cannot connect to host 127\.0\.0\.1:9"
    ):
        make_shards(image_tree, out, **OPTIONS)
    assert waits == [1.0, 4.0]  # gcsfs does not retry this error by itself
    with pytest.raises(DownloadError, match=r"got UnreachableError: Cannot connect to host 127\."):
        ShardFolder.open(out.address)
