"""What differs between the stores that are written to: S3, Google Cloud Storage, Hugging Face.

Each function takes fsspec's file system and an address, and raises the backend's own errors.
"""

import base64
import contextlib
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PART_BYTES = 16 << 20  # of a large object; a store takes 10,000 parts
PARTS_AT_ONCE = 2  # of one object, so that a worker holds 32 MiB
# Objects that one request asks about, or one commit writes. The Hub advises fewer than 100 files a
# commit (https://huggingface.co/docs/hub/storage-limits).
AT_ONCE = {"s3": 1, "gs": 1, "hf": 99}
CONFLICT_TRIES = 10  # of a commit that another one has come before
CONFLICT_WAIT_S = 1.0  # before the next, on average
_CHANCE = random.SystemRandom()  # not seeded: workers must not commit together again
_MD5 = re.compile(r"[0-9a-f]{32}(-\d+)?")

Contents = Mapping[str, bytes]  # of small objects, by address


class Stored(NamedTuple):
    """What a store says about an object.

    Attributes:
        num_bytes: Its length.
        sha256: The SHA-256 of its bytes that was stored with it; None if the store has none.
        md5: MD5 of its bytes, or of the MD5s of its parts with their number: `HEX-3`; None if the
            store has none.
    """

    num_bytes: int
    sha256: str | None
    md5: str | None

    def is_of(self, num_bytes: int, sha256: str) -> bool:
        """Whether it has this length, and this digest where one was stored with it."""
        return self.num_bytes == num_bytes and self.sha256 in (None, sha256)


def _ask_s3(files: Any, address: str) -> Stored:
    bucket, key, _ = files.split_path(address)
    found = files.call_s3("head_object", Bucket=bucket, Key=key)
    tag = found["ETag"].strip('"')
    return Stored(
        num_bytes=found["ContentLength"],
        sha256=found["Metadata"].get("sha256"),
        md5=tag if _MD5.fullmatch(tag) else None,
    )


def _send_s3(files: Any, path: Path, address: str, sha256: str, _beside: Contents) -> None:
    files.put_file(
        str(path),
        address,
        chunksize=PART_BYTES,
        max_concurrency=PARTS_AT_ONCE,
        Metadata={"sha256": sha256},
    )


def _remove_s3(addresses: Sequence[str], files: Any) -> None:
    places = [files.split_path(address) for address in addresses]
    keys = [{"Key": key} for _, key, _ in places]
    found = files.call_s3("delete_objects", Bucket=places[0][0], Delete={"Objects": keys})
    if errors := found.get("Errors"):
        raise PermissionError(f"{errors[0].get('Key')}: {errors[0].get('Message')}")


def _remove_each(addresses: Sequence[str], files: Any) -> None:
    for address in addresses:
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(address)


def abort_s3(files: Any, folder: str, names: Collection[str]) -> None:
    """Give up the unfinished uploads of some objects in a folder."""
    bucket, prefix, _ = files.split_path(folder)
    start = f"{prefix}/" if prefix else ""
    found = files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=start)
    for upload in found.get("Uploads", ()):
        if upload["Key"].removeprefix(start) in names:
            files.abort_mpu(bucket, upload["Key"], upload["UploadId"])


def _ask_gs(files: Any, address: str) -> Stored:
    files.invalidate_cache()
    found = files.info(address)
    if found["type"] != "file":
        raise FileNotFoundError(address)
    md5 = found.get("md5Hash")
    return Stored(
        num_bytes=int(found["size"]),
        sha256=found.get("metadata", {}).get("sha256"),
        md5=base64.b64decode(md5).hex() if md5 else None,
    )


def _send_gs(files: Any, path: Path, address: str, sha256: str, _beside: Contents) -> None:
    files.put_file(str(path), address, chunksize=PART_BYTES, metadata={"sha256": sha256})


def _send_hf(files: Any, path: Path, address: str, _sha256: str, beside: Contents) -> None:
    commit(files, {address: path, **beside})


def _write_each(files: Any, contents: Contents) -> None:
    for address, data in contents.items():
        files.pipe_file(address, data)


def _ask_each(ask: Callable[[Any, str], Stored]) -> "Ask":
    def ask_each(files: Any, addresses: Sequence[str]) -> list[Stored | None]:
        found: list[Stored | None] = []
        for address in addresses:
            try:
                found.append(ask(files, address))
            except FileNotFoundError:
                found.append(None)
        return found

    return ask_each


def _ask_hf(files: Any, addresses: Sequence[str]) -> list[Stored | None]:
    """Ask about files of one dataset; fsspec's way lists a whole folder for each."""
    files.dircache.clear()  # of what may have been written since
    places = [files.resolve_path(address) for address in addresses]
    api, place = _hub_api(files), places[0]
    paths = [place.path_in_repo for place in places]
    found = api.get_paths_info(
        place.repo_id, paths, revision=place.revision, repo_type=place.repo_type
    )
    by_path = {info.path: info for info in found if hasattr(info, "size")}  # a folder has none
    return [_stored_hf(by_path[path]) if path in by_path else None for path in paths]


def _stored_hf(info: Any) -> Stored:
    return Stored(num_bytes=info.size, sha256=info.lfs.sha256 if info.lfs else None, md5=None)


def commit(files: Any, contents: Mapping[str, Path | bytes], gone: Sequence[str] = ()) -> None:
    """Write and remove files of one dataset of the Hub in one commit: all of it, or nothing.

    A dataset is a git repository, whose commits follow each other: of two that come together, the
    Hub refuses one, which is sent again. fsspec's way copies each file to /tmp first.
    """
    import huggingface_hub as hub

    places = {address: files.resolve_path(address) for address in (*contents, *gone)}
    operations: list[Any] = [
        hub.CommitOperationAdd(places[address].path_in_repo, content)
        for address, content in contents.items()
    ]
    operations += [hub.CommitOperationDelete(places[address].path_in_repo) for address in gone]
    place = next(iter(places.values()))
    verb, others = "write" if contents else "remove", len(places) - 1
    message = f"srp-data: {verb} {place.path_in_repo}" + (f" and {others} more" if others else "")
    for wait_s in _conflict_waits():
        try:
            _hub_api(files).create_commit(
                place.repo_id,
                operations,
                commit_message=message,
                repo_type=place.repo_type,
                revision=place.revision,
            )
            break
        except RuntimeError as error:  # around what the storage of large files said
            raise error.__cause__ or error from None
        except hub.errors.HfHubHTTPError as error:
            if wait_s is None or error.response.status_code not in (409, 412):
                raise
            time.sleep(wait_s)
    files.dircache.clear()


def _conflict_waits() -> Iterator[float | None]:
    """Give the wait after each try, s; None after the last."""
    for _ in range(CONFLICT_TRIES - 1):
        yield CONFLICT_WAIT_S * (0.5 + _CHANCE.random())
    yield None


def _remove_hf(addresses: Sequence[str], files: Any) -> None:
    """Remove those that are there, in one commit; a commit that names another one is refused."""
    there = zip(addresses, _ask_hf(files, addresses), strict=True)
    if gone := [address for address, stored in there if stored]:
        commit(files, {}, gone)


def _hub_api(files: Any) -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=files.endpoint, token=files.token)


Ask = Callable[[Any, Sequence[str]], list[Stored | None]]
ASK: dict[str, Ask] = {"s3": _ask_each(_ask_s3), "gs": _ask_each(_ask_gs), "hf": _ask_hf}
SEND: dict[str, Callable[[Any, Path, str, str, Contents], None]] = {
    "s3": _send_s3,
    "gs": _send_gs,
    "hf": _send_hf,
}
SENDS_BESIDE = frozenset(("hf",))
"""Stores whose `SEND` writes what is beside the file with it; the others leave it out."""
WRITE: dict[str, Callable[[Any, Contents], None]] = {
    "s3": _write_each,
    "gs": _write_each,
    "hf": commit,
}
REMOVE: dict[str, Callable[[Sequence[str], Any], None]] = {
    "s3": _remove_s3,
    "gs": _remove_each,
    "hf": _remove_hf,
}
