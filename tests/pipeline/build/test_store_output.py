"""OUT and SOURCE at an address: a real S3 server, and a proxy before it that breaks."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from broken_s3 import Proxy, Request, broken_s3, deny, drop, fall_silent, lose_answer, throttle
from served import at, remove_backends, s3_server

from pipeline.build import build
from pipeline.common.errors import ConfigError, RejectsError, SourceError, StoreError
from pipeline.remote import backends, objects
from pipeline.remote.objects import (
    list_objects,
    look_up,
    remove_objects,
    upload_file,
    write_object,
)
from pipeline.remote.remote_file import filesystem
from pipeline.verify.verify import VERIFIED_NAME, verify_shards
from pipeline.write.worker import build_shard

SIZES = {"canvas_size": 168, "crop_size": 112, "glimpse_size": 32}  # of the test's shards
OPTIONS = {"layout": "canvas", "candidates": "full+five", "shard_mib": 1}  # of canvas_shards


OUT = at("s3://bucket/deep/mine")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bucket, as the folder it lies in. What is built there is built by this process."""
    monkeypatch.setattr(build, "_run_here", lambda tasks, *_: map(build_shard, tasks))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = tmp_path / "served" / "bucket"
    bucket.mkdir(parents=True)
    with s3_server(bucket.parent, monkeypatch):
        yield bucket


@pytest.fixture
def proxy(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with broken_s3(monkeypatch) as proxy:
        yield proxy


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, but what `verify` noted there, which other tests may have called."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != VERIFIED_NAME}


def test_an_address_gets_the_bytes_of_a_folder_and_nothing_stays_here(
    proxy: Proxy, bucket: Path, image_tree: Path, canvas_shards: Path, make_shards: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(image_tree, bucket / "images")
    built = make_shards(at("s3://bucket/images"), OUT, **OPTIONS)
    assert files(bucket / "deep/mine") == files(canvas_shards)
    assert not list((tmp_path / "cache/srp/scratch").iterdir())
    sent = [path for method, path in proxy.requests if method == "PUT"]
    assert sent[-1].endswith("/manifest.json")
    num_shards = len(built.manifest.shards)
    proxy.requests.clear()
    again = make_shards(image_tree, OUT, **OPTIONS)
    assert len(again.reused) == num_shards
    assert not proxy.asked("PUT", ".tar")
    assert not proxy.asked("GET", ".tar")


def test_what_is_verified_is_asked_for_and_read_once_only_with_all(
    proxy: Proxy, image_tree: Path, make_shards: Any
) -> None:
    built = make_shards(image_tree, OUT, **OPTIONS).manifest
    names = tuple(shard.name for shard in built.shards)
    proxy.requests.clear()
    assert verify_shards(OUT.address, workers=1, reads_all=False).unread == names
    assert not proxy.asked("GET", ".tar")
    assert verify_shards(OUT.address, workers=1).unread == ()
    assert [proxy.asked("GET", name) for name in names] == [1] * len(names)


@pytest.mark.quick("drop", "lose_answer")
@pytest.mark.parametrize("fault", [throttle, drop, lose_answer])
def test_a_store_that_fails_for_a_while_gets_the_same_bytes(
    fault: Any, proxy: Proxy, bucket: Path, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    proxy.faults = [fault("PUT", ending, 2) for ending in ("-000000.tar", ".json")]
    make_shards(image_tree, OUT, **OPTIONS)
    assert files(bucket / "deep/mine") == files(canvas_shards)


def test_a_build_that_ends_early_goes_on_with_what_has_arrived_whole(
    proxy: Proxy, bucket: Path, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    proxy.faults = [deny("PUT", "train-000001.tar")]
    with pytest.raises(
        StoreError, match=r"^cannot write s3://bucket/deep/mine/train-000001\.tar: "
    ):
        make_shards(image_tree, OUT, **OPTIONS)
    assert not (bucket / "deep/mine/manifest.json").exists()
    assert not (bucket / "deep/mine/train-000001.tar").exists()
    proxy.faults = []
    again = make_shards(image_tree, OUT, **OPTIONS)
    assert again.reused == ("train-000000.tar",)
    assert files(bucket / "deep/mine") == files(canvas_shards)


@pytest.mark.sweep
def test_a_build_that_is_killed_leaves_whole_objects_and_its_scratch_goes_with_the_next(
    proxy: Proxy, bucket: Path, image_tree: Path, canvas_shards: Path, make_shards: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", str(image_tree)]
    command += [OUT.address, *sizes, "--shard-mib", "1", "--workers", "2"]
    hung = threading.Event()
    proxy.faults = [partial(fall_silent, ending="train-000001.tar", hung=hung)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert hung.wait(90)
    killed.kill()
    killed.wait()
    left = tmp_path / "cache/srp/scratch"
    assert list(left.iterdir())
    whole = files(canvas_shards)
    found = files(bucket / "deep/mine")
    assert all(whole[name] == data for name, data in found.items() if not name.startswith("."))
    assert "train-000001.tar" not in found
    proxy.faults = []
    make_shards(image_tree, OUT, **OPTIONS)
    assert files(bucket / "deep/mine") == whole
    assert not list(left.iterdir())


@pytest.mark.sweep
def test_parts_that_a_killed_build_sent_are_given_up_by_the_next_run(
    proxy: Proxy, bucket: Path, image_tree: Path
) -> None:
    large = [OUT.address, "--canvas-size=1152", "--crop-size=64", "--glimpse-size=32"]
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", str(image_tree), *large]
    command += ["--shard-mib=48", "--workers=1"]  # a shard of three parts, and one of two
    hung = threading.Event()

    def fall_silent_in_the_second_part(request: Request) -> bool:
        is_it = "train-000000.tar?partNumber=2" in request.path.replace("&", "?")
        return is_it and fall_silent(request, "train-000000.tar", hung)

    def unfinished() -> list[str]:
        bucket, prefix, _ = filesystem("s3").split_path(OUT.address)
        found = filesystem("s3").call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        return [upload["Key"] for upload in found.get("Uploads", ())]

    proxy.faults = [fall_silent_in_the_second_part]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert hung.wait(90)
    killed.kill()
    killed.wait()
    assert unfinished() == ["deep/mine/train-000000.tar"]
    assert "train-000000.tar" not in list_objects(OUT)
    proxy.faults = []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unfinished() == []
    assert verify_shards(bucket / "deep/mine", workers=1).unread == ()  # of the server's disk


def test_a_published_shard_that_is_gone_or_cut_is_built_again(
    bucket: Path, image_tree: Path, canvas_shards: Path, make_shards: Any
) -> None:
    built = make_shards(image_tree, OUT, **OPTIONS).manifest
    remove_objects(OUT, ["train-000000.tar"])  # by the server, which keeps its list for a while
    cut = built.shards[-1].name
    write_object(OUT, cut, (bucket / "deep/mine" / cut).read_bytes()[:-512])
    again = make_shards(image_tree, OUT, **OPTIONS)
    assert set(again.reused) == {s.name for s in built.shards[1:-1]}
    assert files(bucket / "deep/mine") == files(canvas_shards)


def test_another_build_is_refused_published_or_not(
    proxy: Proxy, image_tree: Path, make_shards: Any
) -> None:
    proxy.faults = [deny("PUT", "manifest.json")]
    with pytest.raises(StoreError, match=r"manifest\.json"):
        make_shards(image_tree, OUT, **OPTIONS)
    pattern = r"got s3://bucket/deep/mine \(glimpse_size 32 there, 16 requested\)\. Choose another"
    for proxy.faults in ([], []):
        with pytest.raises(ConfigError, match=pattern):
            make_shards(image_tree, OUT, **OPTIONS, glimpse_size=16)
        make_shards(image_tree, OUT, **OPTIONS)


def test_rejects_are_listed_there_and_end_the_build(
    bucket: Path, own_tree: Path, make_shards: Any
) -> None:
    (own_tree / "train/cat/bad.JPEG").write_bytes(b"text")
    with pytest.raises(RejectsError, match=r"all are in s3://bucket/deep/mine/rejects\.jsonl"):
        make_shards(own_tree, OUT, **OPTIONS)
    assert b"bad.JPEG" in (bucket / "deep/mine/rejects.jsonl").read_bytes()
    make_shards(own_tree, OUT, **OPTIONS, max_rejects=1)
    assert (bucket / "deep/mine/manifest.json").exists()


def test_a_large_file_goes_in_parts_and_what_a_killed_process_sent_is_given_up(
    proxy: Proxy, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (objects, backends):
        monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(256)) * (11 << 12))
    proxy.faults = [throttle("PUT", "a.tar", 1), drop("PUT", "a.tar", 1)]
    upload_file(OUT, "a.tar", path, sha256="digest")
    assert (bucket / "deep/mine/a.tar").read_bytes() == path.read_bytes()
    stored = look_up(OUT, "a.tar")
    assert stored
    assert stored.is_of(path.stat().st_size, "digest")
    proxy.faults = [deny("POST", "b.tar")]
    with pytest.raises(StoreError, match=r"b\.tar: PermissionError"):
        upload_file(OUT, "b.tar", path, sha256="digest")
    assert list(list_objects(OUT)) == ["a.tar"]


def test_other_bytes_than_were_sent_are_an_error(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"whole")
    send = backends.SEND["s3"]
    other = tmp_path / "other"
    other.write_bytes(b"other")
    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.0)
    monkeypatch.setitem(backends.SEND, "s3", lambda files, _path, *rest: send(files, other, *rest))
    with pytest.raises(StoreError, match=r"OSError: other bytes than were sent\. Check the addre"):
        upload_file(OUT, "a.tar", path, sha256="digest")


@pytest.mark.parametrize("name", ["train/cat/../a.jpg", "train//a.jpg", "train/cat/\x07.jpg"])
def test_a_name_that_no_folder_has_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, make_shards: Any, bucket: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.sources.store.list_objects", lambda _folder: {name: 5})
    with pytest.raises(SourceError, match=r"^names in SOURCE must be those of plain files; got"):
        make_shards(at("s3://bucket/images"), tmp_path / "out", **OPTIONS)


def test_an_archive_is_streamed_and_resumed(
    proxy: Proxy, bucket: Path, image_archive: Path, canvas_shards: Path, make_shards: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copy(image_archive, bucket / "images.tgz")
    make_shards(at("s3://bucket/images.tgz"), tmp_path / "out", **OPTIONS)
    assert files(tmp_path / "out") == files(canvas_shards)
    make_shards(at("s3://bucket/images.tgz"), OUT, **OPTIONS)
    assert files(bucket / "deep/mine") == files(canvas_shards)


def test_an_archive_of_a_web_server_gives_the_same_shards(
    web: Any, image_archive: Path, canvas_shards: Path, make_shards: Any, tmp_path: Path
) -> None:
    web.folder = image_archive.parent
    make_shards(at(f"{web.address}/{image_archive.name}"), tmp_path / "out", **OPTIONS)
    assert files(tmp_path / "out") == files(canvas_shards)


def test_a_bucket_that_is_missing_or_forbidden_is_one_line(
    proxy: Proxy, image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    pattern = r"^cannot write s3://none/a/\.build/holder\.json: FileNotFoundError: The specified b"
    with pytest.raises(StoreError, match=pattern):
        make_shards(image_tree, at("s3://none/a"), **OPTIONS)
    proxy.faults = [deny("PUT", "holder.json")]
    with pytest.raises(StoreError, match=r"holder\.json: PermissionError: Access Denied\. Check "):
        make_shards(image_tree, OUT, **OPTIONS)
    with pytest.raises(SourceError, match=r"got no file at s3://bucket/none\. Check the address"):
        make_shards(at("s3://bucket/none"), tmp_path / "out", **OPTIONS)


def test_bad_places_are_refused_before_anything_is_asked(
    srp_data: Any, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: object) -> str:
        result = srp_data(*arguments)
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return str(line)

    build_it, out = ("build-shards", image_tree), tmp_path / "out"
    for arguments, rule in (
        ((*build_it, "http://h/a"), "OUT must be a place that can be written; got http://h/a, and"),
        (("build-shards", "http://h/a", out), "SOURCE at http must be an archive; got http://h/a"),
        ((*build_it, out, "--scratch", tmp_path), "--scratch needs an OUT at an address; got"),
        (("plan", image_tree, "http://h/a"), "OUT must be a place that can be written; got http:"),
        (("plan", "s3://b/a.tgz", out), "a build in parts needs a folder of images; got s3://b/a."),
        (("plan", "http://h/a", out), "SOURCE at http must be an archive; got http://h/a"),
        (("merge", "http://h/a"), "OUT must be a place that can be written; got http://h/a, and"),
        (("verify", "s3://b/a", "--repair", out), "--repair needs a folder on this machine, or on"),
    ):
        assert error(*arguments).startswith(f"error: {rule}")
    assert "got credentials" in error(*build_it, "s3://me:secret@b/a")
    remove_backends(monkeypatch)
    assert "pip install 'srp[remote]'" in error(*build_it, "s3://b/a", "--scratch", tmp_path / "s")
