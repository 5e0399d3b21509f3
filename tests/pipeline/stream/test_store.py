import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from served import announce_less, fall_silent, hang_up, range_of, remove_backends, s3_server

from pipeline.common.errors import ConfigError, DownloadError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.index import ShardEntry
from pipeline.format.manifest import Manifest
from pipeline.remote import remote_file
from pipeline.stream.partition import Part
from pipeline.stream.store import open_store
from pipeline.stream.stream import SampleStream


def keys_of(
    address: str, split: str = "train", part: Part | None = None, **store: Any
) -> list[str]:
    opened = open_store(address, **store)
    stream = SampleStream(opened, split)
    return [sample.key for sample in stream.samples(part=part or Part())]


def expected(folder: Path, split: str = "train") -> list[str]:
    shards = manifests.load(folder).of_split(split)
    return [sample.key for shard in shards for sample in shard.samples]


@pytest.fixture
def manifest(canvas_shards: Path) -> Manifest:
    return manifests.load(canvas_shards)


@pytest.fixture
def shard(manifest: Manifest) -> ShardEntry:
    """The first shard that a stream asks for."""
    return manifest.of_split("train")[0]


# What a request may meet. Each is called with the handler, the shard's bytes and the offset asked.
def close_at_once(handler: Any, data: bytes, start: int) -> None:
    handler.close_connection = True


def fail(handler: Any, data: bytes, start: int, status: int = 500) -> None:
    handler.send_error(status)


def send_all(handler: Any, data: bytes, start: int) -> None:
    handler.answer(data, start=0)


def send_from_elsewhere(handler: Any, data: bytes, start: int) -> None:
    handler.answer(data, start=start + 512)


def send_part(handler: Any, data: bytes, start: int) -> None:
    """Answer with a part and do not say which, whatever was asked for."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def end_early(handler: Any, data: bytes, start: int) -> None:
    """Announce nothing and stop after 3000 bytes, as a plain HTTP/1.0 server may."""
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(data[start:][:3000] if start < 3000 else b"")
    handler.close_connection = True


def send_more(handler: Any, data: bytes, start: int) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(data[start:] + bytes(512))
    handler.close_connection = True


def flip_bit(handler: Any, data: bytes, start: int) -> None:
    changed = bytearray(data)
    changed[5000] ^= 1
    handler.answer(bytes(changed), start=start)


def lead_to(address: str) -> Any:
    def redirect(handler: Any, data: bytes, start: int) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{address}{handler.path}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return redirect


def test_a_web_server_gives_the_samples_of_the_folder(web: Any, tmp_path: Path) -> None:
    for split in ("train", "val"):
        assert keys_of(web.address, split) == expected(web.folder, split)
        assert keys_of(f"{web.address}/", split, cache=tmp_path / "c") == expected(
            web.folder, split
        )


def test_a_file_address_is_a_local_folder(canvas_shards: Path) -> None:
    assert keys_of(f"file://{canvas_shards}") == expected(canvas_shards)


def test_parts_ask_for_their_ranges_alone(web: Any, shard: ShardEntry) -> None:
    parts = [Part(rank=rank, world_size=4) for rank in range(4)]
    read = [keys_of(web.address, part=part) for part in parts]
    assert [key for keys in read for key in keys] == expected(web.folder)
    wanted = [range_of(wanted) for wanted in web.asked_for(shard.name)]
    assert len(wanted) > 1
    assert [start for start, _ in wanted[1:]] == [end for _, end in wanted[:-1]]
    assert (wanted[0][0], wanted[-1][1]) == (0, shard.num_bytes + 1)


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("has_cache", [True, False])
@pytest.mark.parametrize("fault", [hang_up, close_at_once, fail, partial(fail, status=429)])
def test_a_failure_that_passes_is_taken_up_where_it_happened(
    fault: Any, has_cache: bool, has_ranges: bool, web: Any, shard: ShardEntry, tmp_path: Path
) -> None:
    web.faults = [fault, fault]
    web.has_ranges = has_ranges
    cache = tmp_path / "cache" if has_cache else None
    assert keys_of(web.address, cache=cache) == expected(web.folder)
    if fault is hang_up:
        retries = web.asked_for(shard.name)[1:]
        assert retries
        assert min(range_of(wanted)[0] for wanted in retries) > 0


def test_a_server_that_falls_silent_is_asked_again(
    web: Any, shard: ShardEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.remote.http_session.READ_TIMEOUT_S", 0.5)
    remote_file._filesystem.cache_clear()
    done = threading.Event()
    web.faults = [partial(fall_silent, until=done)]
    assert keys_of(web.address) == expected(web.folder)
    done.set()
    again = web.asked_for(shard.name)[1:]
    assert again
    assert {range_of(wanted)[0] for wanted in again} == {3000}
    remote_file._filesystem.cache_clear()


def test_a_kept_shard_that_changed_is_an_error_with_the_fix(
    web: Any, shard: ShardEntry, tmp_path: Path
) -> None:
    keys_of(web.address, cache=tmp_path)
    path = tmp_path / f"{shard.sha256}.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    pattern = rf"{shard.name} at offset 0 \(sample .*\) in {path}\. Remove {path} and run the comm"
    with pytest.raises(VerificationError, match=pattern):
        keys_of(web.address, cache=tmp_path)
    path.unlink()
    assert keys_of(web.address, cache=tmp_path) == expected(web.folder)


def test_a_server_that_ignores_one_range_costs_bytes_but_no_sample(web: Any) -> None:
    web.faults = [hang_up, send_all]
    assert keys_of(web.address) == expected(web.folder)


def test_bytes_from_another_offset_are_not_taken(web: Any) -> None:
    web.faults = [hang_up, send_from_elsewhere]
    assert keys_of(web.address) == expected(web.folder)


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_shard_announced_shorter_is_an_error_with_the_offset(
    has_cache: bool, web: Any, shard: ShardEntry, tmp_path: Path
) -> None:
    web.faults = [announce_less]
    length = shard.num_bytes - 600
    pattern = rf"got {length} bytes, not {shard.num_bytes}, in {web.address}/{shard.name} \(broken"
    with pytest.raises(VerificationError, match=rf"{pattern} from offset {length}\)\. Copy the wh"):
        keys_of(web.address, cache=tmp_path / "cache" if has_cache else None)


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_shard_that_ends_early_is_an_error_with_the_offset(
    has_cache: bool, web: Any, shard: ShardEntry, tmp_path: Path
) -> None:
    web.faults = [end_early, end_early]
    with pytest.raises(VerificationError, match=rf"{shard.name} \(broken from offset 3000\)"):
        keys_of(web.address, cache=tmp_path / "cache" if has_cache else None)


def test_a_stream_that_goes_on_after_the_end_is_an_error(web: Any, shard: ShardEntry) -> None:
    web.faults = [send_more]
    with pytest.raises(VerificationError, match=rf"{shard.name} at offset .* \(its end\) in http:"):
        keys_of(web.address)


def test_a_flipped_bit_is_an_error_with_shard_and_offset(web: Any, shard: ShardEntry) -> None:
    web.faults = [flip_bit]
    pattern = rf"{shard.name} at offset 0 \(sample .*\) in {web.address}/{shard.name}\. Copy the"
    with pytest.raises(VerificationError, match=pattern):
        keys_of(web.address)


def test_a_shard_that_is_not_there_is_an_error_with_its_address(
    web: Any, shard: ShardEntry
) -> None:
    web.faults = [partial(fail, status=404)]
    with pytest.raises(VerificationError, match=rf"got none at {web.address}/{shard.name}\. Copy "):
        keys_of(web.address)


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_server_that_keeps_failing_ends_in_one_line_with_the_address(
    status: int, web: Any, shard: ShardEntry
) -> None:
    web.faults = [partial(fail, status=status)] * 9
    with pytest.raises(DownloadError) as caught:
        keys_of(web.address)
    message = str(caught.value)
    assert f"{status}" in message
    assert f"{web.address}/{shard.name} at offset 0. Check the address, the network and" in message
    assert "\n" not in message
    assert len(web.asked_for(shard.name)) == (1 if status == 403 else remote_file.TRIES)


def test_a_server_that_sends_parts_where_all_was_asked_for_ends_in_one_line(
    web: Any, shard: ShardEntry
) -> None:
    web.faults = [send_part] * 9
    with pytest.raises(DownloadError, match=r"got OSError: another range than was requested from"):
        keys_of(web.address)
    assert web.asked_for(shard.name) == [f"bytes=0-{shard.num_bytes}"] * remote_file.TRIES


def test_an_address_where_nobody_listens_ends_in_one_line(web: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        with pytest.raises(DownloadError, match=rf"got ClientConnectorError: .*{address}/manifest"):
            open_store(address).load_manifest()


def test_a_folder_without_a_manifest_is_named(web: Any) -> None:
    with pytest.raises(ConfigError, match=rf"a manifest\.json; got none at {web.address}/none\."):
        open_store(f"{web.address}/none").load_manifest()


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xfe", b"{}", b"[" * 99_999])
def test_a_manifest_that_is_none_is_an_error(data: bytes, web: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    web.folder = tmp_path
    with pytest.raises(VerificationError, match=rf"must be whole; got .* in {web.address}/manif"):
        open_store(web.address).load_manifest()


def test_a_manifest_without_end_is_cut_off(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stream.store.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(VerificationError, match=r"got more than 100 bytes in"):
        open_store(web.address).load_manifest()


def test_a_redirect_inside_the_same_network_is_followed(web: Any) -> None:
    web.faults = [lead_to(web.address.replace("127.0.0.1", "localhost"))]
    assert keys_of(web.address) == expected(web.folder)


@pytest.mark.parametrize("scheme", ["https", "file", "ftp"])
def test_a_redirect_to_another_scheme_is_not_followed(scheme: str, web: Any) -> None:
    web.faults = [lead_to(f"{scheme}://127.0.0.1:1")]
    with pytest.raises(
        DownloadError, match=rf"got the scheme {scheme} in {scheme}://127.* from ht"
    ):
        keys_of(web.address)
    assert not web.faults


def test_a_cache_shared_by_processes_fetches_each_shard_once(
    web: Any, manifest: Manifest, tmp_path: Path
) -> None:
    text = (
        "import sys; from pathlib import Path\n"
        "from pipeline.stream.store import open_store\n"
        "from pipeline.stream.stream import SampleStream\n"
        "store = open_store(sys.argv[1], cache=Path(sys.argv[2]))\n"
        "stream = SampleStream(store, 'train')\n"
        "print(sum(1 for epoch in range(2) for _ in stream.samples(epoch)))"
    )
    command = [sys.executable, "-W", "error", "-c", text, web.address, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == ["36\n"] * 2
    for shard in manifest.of_split("train"):
        assert web.asked_for(shard.name) == [""]


def test_a_backend_that_is_not_installed_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove_backends(monkeypatch)
    for scheme in ("s3", "gs"):
        with pytest.raises(ConfigError, match=rf"of {scheme} needs packages.*'srp\[remote\]'$"):
            open_store(f"{scheme}://bucket/a").load_manifest()


def test_a_size_without_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 5 MiB\. Name a folder for the cache\."):
        open_store("http://host/a", cache_mib=5)


@pytest.fixture
def bucket(canvas_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bucket of a real S3 server that holds the canvas shards, as the folder it lies in."""
    bucket = tmp_path / "served" / "bucket"
    shutil.copytree(canvas_shards, bucket / "deep/mine")
    with s3_server(bucket.parent, monkeypatch):
        yield bucket / "deep/mine"


ADDRESS = "s3://bucket/deep/mine"


def test_an_s3_server_gives_the_samples_of_the_folder(bucket: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        assert keys_of(ADDRESS, split) == expected(bucket, split)
        assert keys_of(ADDRESS, split, cache=tmp_path / "cache") == expected(bucket, split)
    parts = [Part(rank=rank, world_size=3) for rank in range(3)]
    read = [keys_of(ADDRESS, part=part) for part in parts]
    assert [key for keys in read for key in keys] == expected(bucket)


def test_damage_on_an_s3_server_is_an_error_with_shard_and_offset(
    bucket: Path, shard: ShardEntry
) -> None:
    path = bucket / shard.name
    data = path.read_bytes()
    path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    with pytest.raises(VerificationError, match=rf"at offset 0 .* in {ADDRESS}/{shard.name}\."):
        keys_of(ADDRESS)
    path.write_bytes(data[:-100])
    with pytest.raises(VerificationError, match=rf"not {len(data)}, in {ADDRESS}/{shard.name} \("):
        keys_of(ADDRESS)
    path.unlink()
    with pytest.raises(VerificationError, match=rf"got none at {ADDRESS}/{shard.name}\."):
        keys_of(ADDRESS)
    with pytest.raises(ConfigError, match=r"got none at s3://bucket/other\. Name the folder"):
        open_store("s3://bucket/other").load_manifest()


def test_an_s3_server_that_refuses_ends_in_one_line(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(DownloadError, match=rf"got PermissionError: Forbidden from {ADDRESS}/mani"):
        open_store(ADDRESS).load_manifest()
