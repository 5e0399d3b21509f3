"""OUT and SOURCE at Hugging Face: its real client, and a stand-in for the Hub (see `hub.py`)."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hub import READER, Blob, Hub, Repo
from served import at
from served_hub import answer_with, fall_silent, hub_server, use_endpoint

from pipeline import BatchLoader, BatchSpec, SampleStream, ShardFolder, training_batches
from pipeline.build import build
from pipeline.common.errors import (
    ConfigError,
    DownloadError,
    SourceError,
    StoreError,
    VerificationError,
)
from pipeline.remote import objects, remote_file
from pipeline.remote.objects import list_objects, remove_objects, write_object
from pipeline.verify.verify import VERIFIED_NAME, verify_shards
from pipeline.write.worker import build_shard

OPTIONS = {"layout": "canvas", "candidates": "full+five", "shard_mib": 1}  # of canvas_shards
SIZES = ["--canvas-size=168", "--crop-size=112", "--glimpse-size=32", "--shard-mib=1"]
# The client's own: it gives files to httpx2 by a name that httpx2 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


OUT = at("hf://datasets/me/mine/deep/mine")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in. What is built there is built by this process."""
    monkeypatch.setattr(build, "_run_here", lambda tasks, *_: map(build_shard, tasks))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with hub_server(monkeypatch) as served:
        yield served


def files(folder: Path) -> dict[str, bytes]:
    """What a build left in a folder, without what `verify` noted there."""
    found = (path for path in folder.iterdir() if path.is_file() and path.name != VERIFIED_NAME)
    return {path.name: path.read_bytes() for path in found}


def hold(hub: Hub, folder: Path, below: str) -> None:
    """Put the files of a folder into the dataset."""
    for path in folder.rglob("*"):
        if path.is_file():
            blob = Blob(path.read_bytes(), is_lfs=True)
            hub.uploaded[blob.sha256] = blob.data
            hub.repos["me/mine"].files[f"{below}/{path.relative_to(folder)}"] = blob


def paths_of(commits: list[dict[str, list[str]]]) -> list[list[str]]:
    """Give the names of what each commit wrote or removed."""
    return [
        sorted(path.rpartition("/")[2] for key in made if key != "header" for path in made[key])
        for made in commits
    ]


def test_the_hub_gets_the_bytes_of_a_folder_a_shard_in_one_commit_and_the_manifest_last(
    hub: Hub, image_tree: Path, canvas_shards: Path, make_shards: Any, capfd: Any, caplog: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    hub.page = 2
    hold(hub, image_tree, "images")
    built = make_shards(at("hf://datasets/me/mine/images"), OUT, **OPTIONS).manifest
    assert hub.files("deep/mine") == files(canvas_shards)
    assert not list((tmp_path / "cache/srp/scratch").iterdir())
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    shards = [[shard.name, f"{shard.name}.json"] for shard in built.shards]
    sidecars = sorted(["_info.json", *(f"{name[:-4]}.idx" for name, _ in shards)])
    records = sorted(["spec.json", *(record for _, record in shards)])
    ends = [sidecars, ["manifest.json"], records, ["holder.json"]]
    commits = hub.repos["me/mine"].commits
    assert paths_of(commits) == [["holder.json"], ["spec.json"], *shards, *ends]
    assert all(made["lfsFile"][0].endswith(".tar") for made in commits[2 : 2 + len(shards)])


def test_a_second_build_asks_once_about_all_shards_and_sends_none(
    hub: Hub, image_tree: Path, make_shards: Any
) -> None:
    built = make_shards(image_tree, OUT, **OPTIONS).manifest
    hub.requests.clear()
    hub.num_sent = 0
    assert make_shards(image_tree, OUT, **OPTIONS).reused == tuple(s.name for s in built.shards)
    assert not hub.asked("PUT", "/storage/")
    assert not hub.asked("GET", r"/resolve/.*\.tar$")
    assert hub.asked("POST", "/paths-info/") < len(built.shards)


def test_the_hubs_digests_verify_shards_that_are_not_read(
    hub: Hub, image_tree: Path, make_shards: Any
) -> None:
    built = make_shards(image_tree, OUT, **OPTIONS).manifest
    names = tuple(shard.name for shard in built.shards)
    hub.requests.clear()
    assert verify_shards(OUT.address, workers=1, reads_all=False).unread == names
    assert not hub.asked("GET", r"\.tar$")
    assert hub.asked("POST", "/paths-info/") == 1
    assert verify_shards(OUT.address, workers=1).unread == ()
    damaged = hub.repos["me/mine"].files
    damaged[f"deep/mine/{names[0]}"] = Blob(b"other", is_lfs=True)
    hub.uploaded[damaged[f"deep/mine/{names[0]}"].sha256] = b"other"
    with pytest.raises(
        VerificationError, match=rf"got 5 bytes, not \d+, in {OUT.address}/{names[0]}"
    ):
        verify_shards(OUT.address, workers=1, reads_all=False)


def test_shards_read_from_the_hub_give_the_samples_and_batches_of_the_folder(
    hub: Hub, canvas_shards: Path, tmp_path: Path
) -> None:
    hold(hub, canvas_shards, "deep/mine")
    kept = ShardFolder.open(OUT.address, cache=tmp_path / "kept")
    ours, theirs = (
        [
            (sample.key, sample.originals.tobytes(), sample.glimpses.tobytes())
            for sample in SampleStream(place, "train").samples()
        ]
        for place in (canvas_shards, OUT.address)
    )
    assert ours == theirs
    batches = []
    for folder in (ShardFolder.open(canvas_shards), kept):
        wanted = BatchSpec(candidates=folder.crop_layout.indices("five"), glimpse_px=16)
        reader = folder.reader("train")
        order = training_batches(len(reader), batch_size=4, seed=0, epoch=0)
        loader = BatchLoader(reader, wanted, workers=1)
        batches.append(
            [
                (batch.arrays.crops_BKHWC.tobytes(), batch.labels_B.tobytes())
                for batch in loader.batches(order)
            ]
        )
    assert batches[0] == batches[1]


def test_shards_that_another_process_has_built_since_are_found_and_read(
    hub: Hub, canvas_shards: Path, five_shards: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"shards must have a manifest\.json; got none at hf://da"
    ):
        ShardFolder.open(OUT.address)
    for folder in (canvas_shards, five_shards):  # of other lengths
        hold(hub, folder, "deep/mine")
        assert ShardFolder.open(OUT.address).manifest == ShardFolder.open(folder).manifest


def test_a_part_of_a_shard_is_fetched_by_one_request_and_nothing_beyond_it(
    hub: Hub, canvas_shards: Path
) -> None:
    hold(hub, canvas_shards, "deep/mine")
    remote = remote_file.RemoteFile(OUT, "train-000000.tar", num_bytes=None, start=512, end=2048)
    assert b"".join(remote.chunks()) == (canvas_shards / "train-000000.tar").read_bytes()[512:2048]
    assert hub.num_sent == 1536
    assert hub.asked("GET", "/resolve/") == 1


def test_an_archive_at_the_hub_is_streamed(
    hub: Hub, image_archive: Path, canvas_shards: Path, make_shards: Any, tmp_path: Path
) -> None:
    shutil.copy(image_archive, tmp_path / "images.tgz")
    hold(hub, tmp_path, "archive")
    make_shards(at("hf://datasets/me/mine/archive/images.tgz"), tmp_path / "out", **OPTIONS)
    assert files(tmp_path / "out") == files(canvas_shards)


def test_a_commit_that_another_one_came_before_is_sent_again_but_no_file_is(
    hub: Hub, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    text = "A commit has happened since. Please refresh and try again."
    hub.faults = [answer_with(412, "POST", "/commit/", 5, text)]
    make_shards(image_tree, OUT, **OPTIONS)
    assert hub.files("deep/mine") == files(canvas_shards)
    assert hub.asked("PUT", "/storage/") == len(list(canvas_shards.glob("*.tar")))


def test_a_commit_of_which_the_answer_is_lost_is_not_made_twice(
    hub: Hub, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    commits = hub.repos["me/mine"].commits

    def lose(request: Any) -> bool:
        if "/commit/" not in request.path or len(commits) != 2 or hub.faults != [lose]:
            return False
        hub.faults = []
        request.do_any()  # to a client that is gone
        return True

    hub.faults = [lose]
    built = make_shards(image_tree, OUT, **OPTIONS).manifest
    assert hub.files("deep/mine") == files(canvas_shards)
    assert len(commits) == len(built.shards) + 6


def test_a_build_that_ends_early_goes_on_with_what_has_arrived_whole(
    hub: Hub, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    second = Blob((canvas_shards / "train-000001.tar").read_bytes(), is_lfs=True).sha256
    hub.faults = [answer_with(403, "PUT", second, 1, "Access Denied")]
    with pytest.raises(StoreError, match=rf"^cannot write {OUT.address}/train-000001\.tar: Hf"):
        make_shards(image_tree, OUT, **OPTIONS)
    left = {name for name in hub.files("deep/mine") if not name.startswith(".")}
    assert left == {"train-000000.tar"}
    again = make_shards(image_tree, OUT, **OPTIONS)
    assert again.reused == ("train-000000.tar",)
    assert hub.files("deep/mine") == files(canvas_shards)


def test_a_shard_that_is_gone_or_another_is_built_again(
    hub: Hub, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    built = make_shards(image_tree, OUT, **OPTIONS).manifest
    remove_objects(OUT, ["train-000000.tar"])
    last = f"deep/mine/{built.shards[-1].name}"
    held = hub.repos["me/mine"].files
    held[last] = Blob(held[last].data[:-1] + b"x", is_lfs=True)  # of the same length
    again = make_shards(image_tree, OUT, **OPTIONS)
    assert set(again.reused) == {shard.name for shard in built.shards[1:-1]}
    assert hub.files("deep/mine") == files(canvas_shards)
    with pytest.raises(ConfigError, match=r"deep/mine \(glimpse_size 32 there, 16 requested\)"):
        make_shards(image_tree, OUT, **OPTIONS, glimpse_size=16)


@pytest.mark.sweep
def test_a_build_that_is_killed_while_it_sends_leaves_whole_shards_and_goes_on(
    hub: Hub, image_tree: Path, canvas_shards: Path, make_shards: Any, tmp_path: Path
) -> None:
    hub.part_bytes = 256 << 10  # so that it is killed between the parts of a shard
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", str(image_tree)]
    command += [OUT.address, *SIZES, "--workers", "2"]
    second = Blob((canvas_shards / "train-000001.tar").read_bytes(), is_lfs=True).sha256
    hung = threading.Event()
    hub.faults = [partial(fall_silent, pattern=f"{second}/2", hung=hung)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert hung.wait(90)
    killed.kill()
    killed.wait()
    whole, found = files(canvas_shards), hub.files("deep/mine")
    shown = {name: data for name, data in found.items() if not name.startswith(".")}
    assert all(whole[name] == data for name, data in shown.items())
    assert {"train-000001.tar", "manifest.json"}.isdisjoint(shown)
    hub.faults = []
    again = make_shards(image_tree, OUT, **OPTIONS)
    assert set(again.reused) == {name for name in shown if name.endswith(".tar")}
    assert hub.files("deep/mine") == whole
    assert not list((tmp_path / "cache/srp/scratch").iterdir())


@pytest.mark.sweep
def test_workers_that_commit_at_once_end_in_the_same_bytes(
    hub: Hub, image_tree: Path, canvas_shards: Path
) -> None:
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", str(image_tree)]
    done = subprocess.run(
        [*command, OUT.address, *SIZES, "--workers", "4"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr  # no bars of the client
    assert hub.files("deep/mine") == files(canvas_shards)


def test_what_the_hub_refuses_is_one_line_and_takes_no_second_try(
    hub: Hub, image_tree: Path, make_shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects.time, "sleep", lambda seconds: pytest.fail(f"{seconds} s"))
    hub.repos["me/closed"] = Repo(is_private=True)

    def error(place: str) -> str:
        remote_file._filesystem.cache_clear()
        with pytest.raises(StoreError) as caught:
            make_shards(image_tree, at(f"hf://datasets/{place}"), **OPTIONS)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = "FileNotFoundError: datasets/me/none/.build/holder.json (repository not found). If"
    assert error("me/none").startswith(
        f"cannot write hf://datasets/me/none/.build/holder.json: {missing}"
    )
    assert "@other/.build/holder.json (revision not found)" in error("me/mine@other")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "403, you don't have the rights to write this repository. Check" in error("me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "401, Invalid credentials in Authorization header. Check the addr" in error("me/mine")
    monkeypatch.delenv("HF_TOKEN")
    assert "401, Invalid username or password. Check the address, the netwo" in error("me/mine")
    assert "401, Invalid username or password. Check the address, the netwo" in error("me/closed")
    with pytest.raises(SourceError, match=r"got no file at hf://datasets/me/mine/none\. Check"):
        make_shards(at("hf://datasets/me/mine/none"), tmp_path / "out", **OPTIONS)
    with pytest.raises(ConfigError, match=r"^OUT at hf must be in a dataset; got hf://me/mine\. N"):
        make_shards(image_tree, at("hf://me/mine"), **OPTIONS)


def test_a_limit_of_the_hub_is_waited_for_where_it_is_short_and_else_one_line(
    hub: Hub, image_tree: Path, make_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(objects.time, "sleep", waits.append)
    text = "You have exceeded the rate limit for repository commits (128 per hour)."
    hub.faults = [answer_with(429, "POST", "/commit/", 1, text, Retry_After="7")]
    write_object(OUT, "a", b"a")
    assert waits == [7.0]
    hub.faults = [answer_with(429, "POST", "/commit/", 9, text, Retry_After="1800")]
    with pytest.raises(StoreError, match=r"HfHubHTTPError: 429, You have exceeded the rate limit"):
        make_shards(image_tree, OUT, **OPTIONS)
    hub.faults = [answer_with(429, "GET", "/api/datasets", 9, RateLimit='"api";r=0;t=250')]
    remote_file._filesystem.cache_clear()
    with pytest.raises(StoreError, match=r"HfHubHTTPError: 429 Too Many Requests"):
        list_objects(OUT)
    assert waits == [7.0]


def test_a_hub_that_nobody_answers_for_is_one_line_after_three_tries(
    hub: Hub, image_tree: Path, make_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    use_endpoint("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(objects.time, "sleep", waits.append)
    monkeypatch.setattr(objects, "FIRST_WAIT_S", 1.0)
    with pytest.raises(StoreError, match=r"ConnectError: \[Errno 111\] Connection refused\. Chec"):
        make_shards(image_tree, OUT, **OPTIONS)
    assert waits == [1.0, 4.0]
    with pytest.raises(
        DownloadError, match=r"got ConnectError: .* from hf://.*Check the address, the"
    ):
        ShardFolder.open(OUT.address)
