"""Parts of a build whose OUT, and SOURCE, are in a real S3 server, and a proxy before it."""

import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_s3 import Proxy, broken_s3, deny
from planned import SIZES as SMALL
from planned import config, files
from served import free_port, google_server, s3_server
from served_hub import hub_server

from pipeline.build import build
from pipeline.build.build import build_shards
from pipeline.build.store_output import StoreOutput
from pipeline.common.errors import (
    ConfigError,
    RejectsError,
    SourceError,
    StoreError,
    VerificationError,
)
from pipeline.parts.build_part import build_part
from pipeline.parts.merge import merge_parts
from pipeline.parts.plan import plan_parts
from pipeline.remote import remote_file
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import (
    list_objects,
    read_object,
    remove_objects,
    upload_file,
    write_object,
)
from pipeline.verify.verify import verify_shards
from pipeline.write.worker import build_shard

REPO = Path(__file__).resolve().parents[3]
SIZES = ("--canvas-size=64", "--crop-size=48", "--glimpse-size=16", "-j1")

pytestmark = pytest.mark.usefixtures("small_shards", "_in_this_process")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Path]]:
    """A proxy before a server, and the folder that is the bucket."""
    bucket = tmp_path_factory.mktemp("served") / "bucket"
    bucket.mkdir()
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(bucket.parent, patch),
        broken_s3(patch) as proxy,
    ):
        yield proxy, bucket


@pytest.fixture
def proxy(server: tuple[Proxy, Path]) -> Proxy:
    proxy = server[0]
    proxy.faults = []
    proxy.requests.clear()
    return proxy


@pytest.fixture
def bucket(server: tuple[Proxy, Path], proxy: Proxy) -> Path:
    return server[1]


@pytest.fixture
def _in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_run_here", lambda tasks, *_: map(build_shard, tasks))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def out(bucket: Path, tmp_path: Path) -> RemoteFolder:
    """An address of its own for a test."""
    return RemoteFolder(scheme="s3", address=f"s3://bucket/{tmp_path.name}/mine")


@pytest.fixture
def planned(image_tree: Path, out: RemoteFolder) -> RemoteFolder:
    """An address with a plan."""
    plan_parts(config(image_tree, out))
    return out


@pytest.fixture
def here(bucket: Path, tmp_path: Path) -> Path:
    """The folder that is the address."""
    return bucket / tmp_path.name / "mine"


@pytest.fixture
def source(bucket: Path, image_tree: Path) -> RemoteFolder:
    """The images in the bucket."""
    if not (bucket / "images").exists():
        shutil.copytree(image_tree, bucket / "images")
    return RemoteFolder(scheme="s3", address="s3://bucket/images")


def merge(out: RemoteFolder, max_rejects: int = 0) -> Any:
    return merge_parts(out, max_rejects=max_rejects, workers=1)


def test_parts_in_any_order_of_images_here_and_there_give_the_files_of_one_build(
    proxy: Proxy, here: Path, out: RemoteFolder, image_tree: Path, source: RemoteFolder,
    whole: Path, tmp_path: Path,
) -> None:  # fmt: skip
    plan_parts(config(source, out))
    for part, images in ((4, source), (1, image_tree), (5, source), (2, source), (3, image_tree)):
        built = build_part(config(images, out, scratch=tmp_path / "scratch"), f"{part}/5")
    assert built.num_recorded == built.num_shards == 9
    assert not list((tmp_path / "scratch").iterdir())
    assert not (here / "manifest.json").exists()
    proxy.requests.clear()
    merged = merge(out)
    assert files(here) == files(whole)
    assert not proxy.asked("GET", ".tar")
    sent = [path for method, path in proxy.requests if method == "PUT"]
    assert sent[-1].endswith("/manifest.json")
    names = tuple(shard.name for shard in merged.shards)
    assert verify_shards(out.address, workers=1, reads_all=False).unread == names
    with pytest.raises(ConfigError, match="merged already: check it with srp-data verify s3://buc"):
        merge(out)
    with pytest.raises(ConfigError, match=r"got s3://bucket/.*/mine, which has a manifest\.json"):
        plan_parts(config(image_tree, out))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client's own
@pytest.mark.parametrize(
    ("address", "server"),
    [("gs://bucket/mine", google_server), ("hf://datasets/me/mine/deep", hub_server)],
)
def test_google_and_hugging_face_get_the_files_of_one_build(
    address: str, server: Any, image_tree: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = RemoteFolder(scheme=address[:2], address=address)
    with server(monkeypatch):
        plan_parts(config(image_tree, out))
        for part in ("2/2", "1/2"):
            build_part(config(image_tree, out), part)
        merge(out)
        found = {name: read_object(out, name) for name in list_objects(out)}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert digests == files(whole)


@pytest.mark.sweep  # two processes that import everything
def test_two_processes_at_once_give_the_files_of_one_build(
    here: Path, out: RemoteFolder, image_tree: Path, tmp_path: Path
) -> None:
    wide = {"layout": "tensors", "canvas_size": 260, "crop_size": 224, "shard_mib": 2}
    plan_parts(config(image_tree, out, **wide))
    options = {**SMALL, **wide, "scratch": tmp_path / "scratch"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", image_tree, out.address]
    parts = [
        subprocess.Popen([*command, *words, f"--shards={part}/2"], cwd=REPO) for part in (1, 2)
    ]
    assert [part.wait() for part in parts] == [0, 0]
    merge(out)
    build_shards(config(image_tree, tmp_path / "local", **wide))
    assert files(here) == files(tmp_path / "local")


def test_what_is_missing_cut_or_of_another_build_is_named_with_the_command_that_builds_it(
    here: Path, out: RemoteFolder, image_tree: Path, whole: Path, srp_data: Any, tmp_path: Path
) -> None:
    def build_some(shards: str) -> Any:
        return srp_data("build-shards", image_tree, out, *SIZES, "--shards", shards)

    assert srp_data("plan", image_tree, out, *SIZES[:3]).exit_code == 0
    assert build_some("0-3,5-7").stdout == (
        "7 shards are finished, 0 of them before; 7 of the plan's 9 are. 2 of other parts are "
        "not.\n"
    )
    write_object(out, "train-000001.tar", (here / "train-000001.tar").read_bytes()[:-512])
    other = tmp_path / "train-000003.tar"
    other.write_bytes(bytes((here / other.name).stat().st_size))
    upload_file(out, other.name, other, sha256="0" * 64)
    record = next(here.glob(".build/*/train-000002.tar.json"))
    write_object(out, str(record.relative_to(here)), b"{")
    refused = srp_data("merge", out)
    assert refused.exit_code == 3
    message, command = refused.stderr.splitlines()[-1].split("Build them with: ")
    assert message == (
        "error: every shard of the plan must be there, with the bytes of its record; got 5 of 9 "
        f"missing or damaged in {out}. "
    )
    assert not (here / "manifest.json").exists()
    _, *words = shlex.split(command)
    assert words[-2:] == ["--shards", "1-4,8"]
    built = srp_data(*words, "-j1")
    assert built.stdout.endswith(f"9 of the plan's 9 are. Publish: srp-data merge {out}\n")
    assert "0 of them before" in built.stdout
    assert srp_data("merge", out).exit_code == 0
    assert files(here) == files(whole)


def test_a_part_that_is_built_again_keeps_what_has_arrived_whole(
    proxy: Proxy, planned: RemoteFolder, image_tree: Path
) -> None:
    proxy.faults = [deny("PUT", "train-000004.tar")]
    with pytest.raises(StoreError, match=r"^cannot write s3://bucket/.*/mine/train-000004\.tar: "):
        build_part(config(image_tree, planned), "2-4")
    proxy.faults = []
    again = build_part(config(image_tree, planned), "2-4")
    assert again.reused == ("train-000002.tar", "train-000003.tar")
    remove_objects(planned, ["train-000003.tar"])
    proxy.requests.clear()
    assert build_part(config(image_tree, planned), "2-4").reused == (
        again.reused[0],
        "train-000004.tar",
    )
    assert not proxy.asked("GET", ".tar")


def test_a_part_beside_another_of_the_same_shards_does_no_harm(
    here: Path, planned: RemoteFolder, image_tree: Path, whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    part = config(image_tree, planned)

    def beside(tasks: Any, *_: object) -> Iterator[Any]:
        """Build all in another part, in the middle of the first shards of this one."""
        yield build_shard(tasks[0])
        monkeypatch.setattr(build, "_run_here", lambda tasks, *_: map(build_shard, tasks))
        assert len(build_part(part, "0-8").reused) == 1
        yield from map(build_shard, tasks[1:])

    monkeypatch.setattr(build, "_run_here", beside)
    assert build_part(part, "1/2").num_recorded == 9
    merge(planned)
    assert files(here) == files(whole)


def test_parts_and_plans_of_other_options_or_images_are_refused_by_what_differs(
    here: Path, planned: RemoteFolder, image_tree: Path, own_tree: Path
) -> None:
    build_part(config(image_tree, planned), "0-1")
    before = files(here)
    with pytest.raises(
        ConfigError,
        match=rf"^a part must be of the plan in OUT; got another in {planned}/\.build/plan\.jsonl "
        r"\(glimpse_size 16 there, 24 requested\)\. Give the options that srp-data plan was given",
    ):
        build_part(config(image_tree, planned, glimpse_size=24), "1/2")
    with pytest.raises(ConfigError, match=r"/mine \(crop_size 48 there, 40 requested\)\. Choose "):
        plan_parts(config(image_tree, planned, crop_size=40))
    (own_tree / "train/cat/cat_000.JPEG").unlink()
    for refused in (plan_parts, build_shards):
        with pytest.raises(ConfigError, match=r"/mine \(other source images\)\. Choose another "):
            refused(config(own_tree, planned))
    plan_parts(config(image_tree, planned))
    assert files(here) == before


def test_a_whole_build_goes_on_where_parts_ended(
    here: Path, planned: RemoteFolder, image_tree: Path, whole: Path
) -> None:
    build_part(config(image_tree, planned), "0-3")
    assert len(build_shards(config(image_tree, planned)).reused) == 4
    assert files(here) == files(whole)


def test_a_merge_that_was_killed_after_its_manifest_is_finished_by_the_next(
    here: Path, planned: RemoteFolder, image_tree: Path, whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    build_part(config(image_tree, planned), "1/1")
    with monkeypatch.context() as patch:
        patch.setattr(StoreOutput, "forget", lambda *_: None)  # killed before it
        merge(planned)
    assert (here / ".build/plan.jsonl").exists()
    merge(planned)
    assert files(here) == files(whole)


def test_rejects_end_a_part_and_count_in_the_merge(
    here: Path, out: RemoteFolder, own_tree: Path, tmp_path: Path
) -> None:
    (own_tree / "train/cat/cat_000.JPEG").write_bytes(b"no image")
    plan_parts(config(own_tree, out))
    with pytest.raises(RejectsError, match=r"got 1 in these shards alone, the first train/cat/cat"):
        build_part(config(own_tree, out), "1/1")
    with pytest.raises(RejectsError, match="Add --max-rejects 1 to leave them out"):
        merge(out)
    merge(out, max_rejects=1)
    build_shards(config(own_tree, tmp_path / "whole", max_rejects=1))
    assert files(here) == files(tmp_path / "whole")


def test_a_source_at_an_address_that_changed_or_is_another_is_named(
    bucket: Path, own_tree: Path, tmp_path: Path
) -> None:
    shutil.copytree(own_tree, bucket / tmp_path.name / "images")
    images = RemoteFolder(scheme="s3", address=f"s3://bucket/{tmp_path.name}/images")
    plan = plan_parts(config(images, tmp_path / "out"))
    first, second = (image.file for image in plan.shards[0][1][:2])
    other = RemoteFolder(scheme="s3", address="s3://bucket/none")
    with pytest.raises(
        SourceError,
        match=rf"^the source must be as when it was planned; got 0 bytes in s3://bucket/none/{first}"
        r", which had [\d,]+\. Give that source, or plan another folder\.$",
    ):
        build_part(config(other, tmp_path / "out"), "1/1")
    write_object(images, second, read_object(images, second) + b"x")
    with pytest.raises(RejectsError, match=rf"first {second} \(the file changed after it was lis"):
        build_part(config(images, tmp_path / "out"), "0")


def test_a_damaged_plan_is_named_by_its_address(planned: RemoteFolder, image_tree: Path) -> None:
    name = ".build/plan.jsonl"
    data = read_object(planned, name)
    for offset in (30, 400, len(data) - 9):
        write_object(planned, name, data[:offset] + b"\0" + data[offset + 1 :])
        with pytest.raises(VerificationError, match=r"^a plan must be whole; got .* in s3://bucke"):
            build_part(config(image_tree, planned), "1/1")
    write_object(planned, name, data[: len(data) // 2])
    with pytest.raises(VerificationError, match="Run the same srp-data plan command again"):
        build_part(config(image_tree, planned), "1/1")


def test_a_plan_is_read_by_its_head_and_the_lines_of_the_part_alone(
    planned: RemoteFolder, image_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.parts.plan_file._READ_BYTES", 64)
    read: list[tuple[int, int]] = []

    def noted(folder: RemoteFolder, name: str, *, start: int, end: int) -> bytes:
        read.append((start, end))
        return read_object(folder, name, start=start, end=end)

    monkeypatch.setattr("pipeline.parts.plan_file.read_object", noted)
    assert build_part(config(image_tree, planned), "2-3,5").num_recorded == 3
    assert [start for start, _ in read[:3]] == [0, 0, 0]
    assert len([start for start, _ in read if start]) == 2


def test_an_address_without_a_plan_rights_or_a_server_is_one_line(
    proxy: Proxy, out: RemoteFolder, image_tree: Path, srp_data: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def error(*arguments: object) -> str:
        result = srp_data(*arguments)
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return str(line)

    plan = ("plan", image_tree, out, *SIZES[:3])
    part = ("build-shards", image_tree, out, *SIZES, "--shards", "1/2")
    none = (
        f"error: OUT must hold a plan; got none in {out}. Make one with: srp-data plan SOURCE {out}"
    )
    assert error(*part) == error("merge", out) == none
    assert srp_data(*plan).exit_code == 0
    rights = "PermissionError: Access Denied. Check the address, the network and your rights there"
    proxy.faults = [deny("PUT", ".json")]
    assert error(*plan).startswith(f"error: cannot write {out}/.build/holder.json: {rights}")
    assert error("merge", out).startswith(f"error: cannot write {out}/.build/holder.json: {rights}")
    assert error(*part).startswith(f"error: cannot write {out}/.build/")
    proxy.faults = [deny("GET", "plan.jsonl")]
    for command in (part, ("merge", out)):
        assert error(*command).startswith(
            f"error: cannot read {out}/.build/plan.jsonl: PermissionE"
        )
    monkeypatch.setattr("pipeline.remote.objects.TRIES", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    remote_file._filesystem.cache_clear()
    try:
        assert error("merge", out).startswith(f"error: cannot read {out}/.build/plan.jsonl: Endpoi")
    finally:
        remote_file._filesystem.cache_clear()
