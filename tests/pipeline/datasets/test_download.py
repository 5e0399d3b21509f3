import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from reported import Reported

from pipeline.common.errors import ConfigError, DownloadError, VerificationError
from pipeline.datasets import download as download_module
from pipeline.datasets.download import ARCHIVES, BASE_URL, Archive, download
from pipeline.sources.class_names import CLASS_NAMES

NAME = "imagenette2-160"
DATA = hashlib.shake_256(b"archive").digest(5000)

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test asks; the server keeps the Range of every request."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range", ""))
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        """Keep the test's output to the test."""

    def reply(self, status: int, body: bytes, **headers: object) -> None:
        """Send one response; underscores in header names stand for hyphens."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    answer: Answer
    ranges: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def ranged(handler: Handler) -> None:
    """Serve DATA as S3 does."""
    start = int(handler.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
    if start >= len(DATA):
        handler.reply(416, b"")
    elif start:
        span = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        handler.reply(206, DATA[start:], Content_Range=span)
    else:
        handler.reply(200, DATA)


def whole(handler: Handler) -> None:
    """Serve DATA without knowing of ranges."""
    handler.reply(200, DATA)


def short(handler: Handler) -> None:
    """Promise DATA and hang up in the middle."""
    handler.reply(200, DATA[:3000], Content_Length=len(DATA))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    archive = Archive(len(DATA), hashlib.sha256(DATA).hexdigest())
    monkeypatch.setitem(ARCHIVES, NAME, archive)
    monkeypatch.setattr(download_module, "CHUNK_BYTES", 1000)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.answer, running.ranges = ranged, []
        monkeypatch.setattr(download_module, "BASE_URL", running.url)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def test_an_archive_arrives_whole_and_alone(server: Server, tmp_path: Path) -> None:
    path = download(NAME, tmp_path / "made" / "data")
    assert path == tmp_path / "made" / "data" / f"{NAME}.tgz"
    assert path.read_bytes() == DATA
    assert list(path.parent.iterdir()) == [path]


def test_an_archive_that_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.tgz").write_bytes(DATA)
    assert download(NAME, tmp_path).read_bytes() == DATA
    assert server.ranges == []


def test_another_file_under_its_name_is_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.tgz"
    path.write_bytes(b"mine")
    message = (
        f"the archive must hold 5000 bytes; got 4 in {path}. "
        f"Remove {path} and run the same command again."
    )
    with pytest.raises(VerificationError, match=exactly(message)):
        download(NAME, tmp_path)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("num_bytes", [1, 2500, 4999])
def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, num_bytes: int
) -> None:
    (tmp_path / f"{NAME}.tgz.part").write_bytes(DATA[:num_bytes])
    assert download(NAME, tmp_path).read_bytes() == DATA
    assert server.ranges == [f"bytes={num_bytes}-"]


def test_a_part_that_is_complete_only_needs_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.tgz.part").write_bytes(DATA)
    assert download(NAME, tmp_path).read_bytes() == DATA
    assert server.ranges == []


def test_a_part_beyond_the_end_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.tgz.part").write_bytes(DATA + b"more")
    assert download(NAME, tmp_path).read_bytes() == DATA
    assert server.ranges == ["bytes=5004-", ""]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.answer = whole
    (tmp_path / f"{NAME}.tgz.part").write_bytes(DATA[:2500])
    assert download(NAME, tmp_path).read_bytes() == DATA


def test_a_range_that_was_not_asked_for_is_not_appended(server: Server, tmp_path: Path) -> None:
    def answer_other(handler: Handler) -> None:
        if "Range" in handler.headers:
            handler.reply(206, DATA[100:], Content_Range="bytes 100-4999/5000")
        else:
            handler.reply(200, DATA)

    server.answer = answer_other
    (tmp_path / f"{NAME}.tgz.part").write_bytes(DATA[:2500])
    assert download(NAME, tmp_path).read_bytes() == DATA
    assert server.ranges == ["bytes=2500-", ""]


@pytest.mark.parametrize("at_hand", [0, 2500])
@pytest.mark.parametrize("span", [None, "bytes 100-4999/5000", "nonsense"])
def test_a_server_that_sends_a_part_where_all_was_asked_for_ends_in_one_line(
    server: Server, tmp_path: Path, span: str | None, at_hand: int
) -> None:
    server.answer = lambda handler: handler.reply(206, DATA[100:], Content_Range=span)
    part = tmp_path / f"{NAME}.tgz.part"
    part.write_bytes(DATA[:at_hand])
    message = exactly(
        f"cannot download {server.url}/{NAME}.tgz: HTTP status 206, a part of the file. "
        f"Check the network, or use a copy: srp-data build-shards /path/to/{NAME}.tgz shards"
    )
    with pytest.raises(DownloadError, match=message):
        download(NAME, tmp_path)
    assert server.ranges == [*(["bytes=2500-"] if at_hand else []), ""]
    assert not at_hand or part.read_bytes() == DATA[:2500]


def test_a_connection_that_ends_early_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.answer = short
    with pytest.raises(DownloadError, match=r"^the download of http.* was interrupted: ") as caught:
        download(NAME, tmp_path)
    assert str(caught.value).endswith("Run the same command again to continue.")
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.tgz.part"]
    server.answer = ranged
    assert download(NAME, tmp_path).read_bytes() == DATA
    assert server.ranges == ["", "bytes=3000-"]


def test_wrong_bytes_are_discarded_and_named(server: Server, tmp_path: Path) -> None:
    wrong = bytes(len(DATA))
    server.answer = lambda handler: handler.reply(200, wrong)
    message = (
        f"the archive's SHA-256 must be {hashlib.sha256(DATA).hexdigest()}; "
        f"got {hashlib.sha256(wrong).hexdigest()} in {tmp_path / NAME}.tgz.part. "
        "It was removed; run the same command again."
    )
    with pytest.raises(VerificationError, match=exactly(message)):
        download(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_announced_nowhere_are_discarded(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: handler.reply(200, DATA * 9, Content_Length=None)
    with pytest.raises(VerificationError, match=r"^the archive must hold 5000 bytes; got 6000 in"):
        download(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_login_page_does_not_touch_what_is_at_hand(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: handler.reply(200, b"<html>Log in")
    part = tmp_path / f"{NAME}.tgz.part"
    part.write_bytes(DATA[:2500])
    message = (
        f"the server must send 5000 bytes; it announces 12 at {server.url}/{NAME}.tgz. "
        "Open the URL in a browser: a proxy or a login page may answer in its place."
    )
    with pytest.raises(VerificationError, match=exactly(message)):
        download(NAME, tmp_path)
    assert part.read_bytes() == DATA[:2500]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_is_one_line_with_a_way_out(server: Server, tmp_path: Path, status: int) -> None:
    server.answer = lambda handler: handler.reply(status, b"")
    with pytest.raises(DownloadError) as caught:
        download(NAME, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"cannot download {server.url}/{NAME}.tgz: HTTP status {status} ")
    assert message.endswith(f"srp-data build-shards /path/to/{NAME}.tgz shards")
    assert "\n" not in message


def test_no_network_is_one_line_with_a_way_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(("127.0.0.1", 0), Handler) as closed:
        monkeypatch.setattr(download_module, "BASE_URL", closed.url)
    message = rf"^cannot download {closed.url}/{NAME}\.tgz: .*refused.*\. .* shards$"
    with pytest.raises(DownloadError, match=message):
        download(NAME, tmp_path)


def test_a_silent_server_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    server.answer = lambda _handler: done.wait(30) and None
    monkeypatch.setattr(download_module, "TIMEOUT_S", 0.05)
    try:
        with pytest.raises(DownloadError, match=r"^cannot download .*: timed out\. "):
            download(NAME, tmp_path)
    finally:
        done.set()


@pytest.mark.parametrize("header", ["Location", "URI"])
@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1", "https://127.0.0.1", "http://localhost", "https://[::1]", "ftp://[::1]"],
)
def test_no_redirect_is_followed_into_a_private_network_or_anywhere(
    place: str, header: str, server: Server, tmp_path: Path
) -> None:
    with Server(("127.0.0.1", 0), Handler) as canary:
        target = f"{place}:{canary.server_address[1]}/{NAME}.tgz"
        server.answer = lambda handler: handler.reply(302, b"", **{header: target})
        with pytest.raises(DownloadError, match=re.escape(f": a redirect to {target}.")) as caught:
            download(NAME, tmp_path)
        canary.socket.setblocking(False)
        with pytest.raises(BlockingIOError):  # no connection was made
            canary.socket.accept()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_of_two_downloads_to_one_file_the_second_is_told_of_the_first(
    server: Server, tmp_path: Path
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer_slowly(handler: Handler) -> None:
        asked.set()
        assert go_on.wait(30)
        handler.reply(200, DATA)

    server.answer = answer_slowly
    first = threading.Thread(target=download, args=(NAME, tmp_path))
    first.start()
    try:
        assert asked.wait(30)
        message = (
            rf"only one download at a time may write a file; got .*tgz\.part, which process "
            rf"{os.getpid()} on .* has been writing since 20.*\. Wait until it ends, or choose "
            r"another folder with --output\."
        )
        with pytest.raises(ConfigError, match=message):
            download(NAME, tmp_path)
    finally:
        go_on.set()
        first.join()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        (f"{NAME}.tgz", DATA)
    ]
    assert server.ranges == [""]


def test_a_part_that_became_the_archive_meanwhile_is_not_written_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, path = tmp_path / f"{NAME}.tgz.part", tmp_path / f"{NAME}.tgz"
    part.write_bytes(DATA)
    lock = fcntl.flock

    def lock_after_the_other_is_done(file: object, how: int) -> None:
        part.replace(path)  # the other process had the lock, and ends here
        lock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", lock_after_the_other_is_done)
    with pytest.raises(ConfigError, match="only one download at a time"):
        download(NAME, tmp_path)
    assert path.read_bytes() == DATA
    assert server.ranges == []


def test_a_download_that_never_began_leaves_no_part(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: handler.reply(404, b"")
    with pytest.raises(DownloadError):
        download(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    message = (
        "NAME must be one of imagenette2-160, imagenette2-320, imagenette2, imagewoof2-160, "
        "imagewoof2-320, imagewoof2; got '../imagenette'."
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        download("../imagenette", tmp_path)


def test_progress_counts_what_was_at_hand(server: Server, tmp_path: Path) -> None:
    progress = Reported()
    (tmp_path / f"{NAME}.tgz.part").write_bytes(DATA[:2500])
    download(NAME, tmp_path, progress=progress)
    assert progress.calls == [
        (f"downloading {NAME}", done, 5000) for done in (2500, 3500, 4500, 5000)
    ]


def test_the_tables_are_well_formed() -> None:
    assert BASE_URL.startswith("https://")
    assert len(set(ARCHIVES.values())) == len(ARCHIVES) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", archive.sha256) for archive in ARCHIVES.values())
    assert len(set(CLASS_NAMES.values())) == len(CLASS_NAMES) == 20
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in CLASS_NAMES)
