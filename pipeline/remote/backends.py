"""What differs between the stores that are written to: S3, Google Cloud Storage, Hugging Face.

Each function takes fsspec's file system and an address, and raises the backend's own errors.
"""

import base64
import contextlib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PART_BYTES = 16 << 20  # of a large object; a store takes 10,000 parts
PARTS_AT_ONCE = 2  # of one object, so that a worker holds 32 MiB
_MD5 = re.compile(r"[0-9a-f]{32}(-\d+)?")


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


def _send_s3(files: Any, path: Path, address: str, sha256: str) -> None:
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
    found = _file_info(files, address)
    md5 = found.get("md5Hash")
    return Stored(
        num_bytes=int(found["size"]),
        sha256=found.get("metadata", {}).get("sha256"),
        md5=base64.b64decode(md5).hex() if md5 else None,
    )


def _send_gs(files: Any, path: Path, address: str, sha256: str) -> None:
    files.put_file(str(path), address, chunksize=PART_BYTES, metadata={"sha256": sha256})


def _ask_hf(files: Any, address: str) -> Stored:
    found = _file_info(files, address)
    lfs = found.get("lfs")
    return Stored(num_bytes=int(found["size"]), sha256=lfs["sha256"] if lfs else None, md5=None)


def _send_hf(files: Any, path: Path, address: str, _sha256: str) -> None:
    _commit(files, address, str(path))


def _write_object(files: Any, address: str, data: bytes) -> None:
    files.pipe_file(address, data)


def _commit(files: Any, address: str, content: str | bytes) -> None:
    """Write a file, or bytes, as a commit of its own; fsspec's way copies it to /tmp first."""
    import huggingface_hub

    place = files.resolve_path(address)
    huggingface_hub.HfApi(endpoint=files.endpoint, token=files.token).upload_file(
        path_or_fileobj=content,
        path_in_repo=place.path_in_repo,
        repo_id=place.repo_id,
        repo_type=place.repo_type,
        revision=place.revision,
        commit_message=f"srp-data: {place.path_in_repo}",
    )


def _file_info(files: Any, address: str) -> Any:
    found = files.info(address)
    if found["type"] != "file":
        raise FileNotFoundError(address)
    return found


ASK: dict[str, Callable[[Any, str], Stored]] = {"s3": _ask_s3, "gs": _ask_gs, "hf": _ask_hf}
SEND: dict[str, Callable[[Any, Path, str, str], None]] = {
    "s3": _send_s3,
    "gs": _send_gs,
    "hf": _send_hf,
}
WRITE: dict[str, Callable[[Any, str, bytes], object]] = {
    "s3": _write_object,
    "gs": _write_object,
    "hf": _commit,
}
REMOVE: dict[str, Callable[[Sequence[str], Any], None]] = {
    "s3": _remove_s3,
    "gs": _remove_each,
    "hf": _remove_each,
}
