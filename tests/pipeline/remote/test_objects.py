"""Objects at Hugging Face, where writing is committing; builds test those of S3 and Google."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Blob, Hub
from served_hub import answer_with, hub_server

from pipeline.common.errors import StoreError
from pipeline.remote import backends, objects, remote_file
from pipeline.remote.address import RemoteFolder
from pipeline.remote.objects import (
    list_objects,
    look_up,
    read_object,
    remove_objects,
    upload_file,
    write_object,
    write_objects,
)

OUT = RemoteFolder(scheme="hf", address="hf://datasets/me/mine/deep/mine")
# The client's own: it gives files to httpx2 by a name that httpx2 will drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(monkeypatch) as served:
        yield served


def test_a_large_file_goes_in_parts_and_is_whole_or_not_there(hub: Hub, tmp_path: Path) -> None:
    hub.part_bytes = 1 << 20
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(256)) * (10 << 10))
    digest = Blob(path.read_bytes(), is_lfs=True).sha256
    hub.faults = [answer_with(403, "PUT", "/3$", 1, "Access Denied")]
    with pytest.raises(StoreError, match=r"a\.tar: HfHubHTTPError: 403, Access Denied\. Check"):
        upload_file(OUT, "a.tar", path, sha256=digest, beside={"a.json": b"{}"})
    assert not hub.files("deep/mine")
    hub.requests.clear()
    upload_file(OUT, "a.tar", path, sha256=digest, beside={"a.json": b"{}"})
    assert hub.files("deep/mine") == {"a.tar": path.read_bytes(), "a.json": b"{}"}
    assert hub.asked("PUT", r"/storage/\w+/\d$") == 3
    stored = look_up(OUT, "a.tar")
    assert stored
    assert stored.is_of(path.stat().st_size, digest)
    assert not stored.is_of(path.stat().st_size, "another")


def test_many_small_files_are_a_few_commits_and_those_that_are_gone_do_no_harm(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.AT_ONCE, "hf", 4)
    monkeypatch.setattr(objects, "REQUEST_BYTES", 30)
    contents = {f"{number}.json": b"%d" % number for number in range(9)} | {"9.json": b"9" * 30}
    write_objects(OUT, contents)
    assert len(hub.repos["me/mine"].commits) == 4  # of 4, 4 and 1 files, and of the long one
    assert list_objects(OUT) == {name: len(data) for name, data in contents.items()}
    assert read_object(OUT, "7.json") == b"7"
    write_object(OUT, "7.json", b"seven")
    assert read_object(OUT, "7.json") == b"seven"
    remove_objects(OUT, [*contents, "never"])
    assert not list_objects(OUT)
    assert len(hub.repos["me/mine"].commits) == 6
    remove_objects(OUT, ["never"])
    assert len(hub.repos["me/mine"].commits) == 6


def test_a_hub_that_falls_silent_in_a_commit_is_asked_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "HUB_SILENCE_S", 0.2)
    woken = threading.Event()

    def fall_silent(request: Any) -> bool:
        if "/commit/" not in request.path or woken.is_set():
            return False
        woken.set()
        request.rfile.read()  # until the client is gone
        request.close_connection = True
        return True

    hub.faults = [fall_silent]
    write_object(OUT, "a", b"a")
    assert hub.files("deep/mine") == {"a": b"a"}
