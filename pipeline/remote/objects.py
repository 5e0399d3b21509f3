"""Objects of a store: listed, looked up, read whole, written whole, and removed.

A store shows an object under its name only once all of it has arrived, whether it was sent at once
or in parts. Failures that may pass are retried; each backend of fsspec has its own kinds of them.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.common.errors import SrpError, StoreError
from pipeline.remote import backends
from pipeline.remote.address import RemoteFolder
from pipeline.remote.backends import PART_BYTES, Stored
from pipeline.remote.remote_file import LONGEST_WAIT_S, asked_wait_s, filesystem, status_of

TRIES = 3  # of a request; the backends retry by themselves before
FIRST_WAIT_S = 1.0  # before the first retry; four times as long before the second
THREADS = 8  # for many small requests
REQUEST_BYTES = 16 << 20  # of small objects that are written together
REMOVED_AT_ONCE = 1000  # the most that S3 takes

Answer = TypeVar("Answer")
Name = TypeVar("Name")


def list_objects(folder: RemoteFolder, below: str = "") -> dict[str, int]:
    """List the objects in a folder and in the folders in it.

    Args:
        folder: The folder.
        below: Folder in it to which the list is limited.

    Returns:
        The length of each, bytes, by its name below `folder`; empty if there is no such folder.

    Raises:
        StoreError: If they cannot be listed.
    """

    def find(files: Any) -> dict[str, dict[str, Any]]:
        files.invalidate_cache()
        found: dict[str, dict[str, Any]] = files.find(_address(folder, below), detail=True)
        return found

    try:
        found = _retried(folder, below, "list", find)
    except FileNotFoundError:
        return {}
    root = folder.address.partition("://")[2] + "/"
    return {
        path.removeprefix(root): int(info["size"])
        for path, info in found.items()
        if path.startswith(root) and info["type"] == "file" and not path.endswith("/")
    }


def look_up(folder: RemoteFolder, name: str) -> Stored | None:
    """Ask a store about one object; None if there is none.

    Raises:
        StoreError: If it does not answer.
    """
    return _look_up(folder, [name])[0]


def look_up_all(folder: RemoteFolder, names: Sequence[str]) -> Iterator[Stored | None]:
    """Ask about many objects, in their order, with as few requests as the store takes."""
    for found in _chunked(folder, partial(_look_up, folder), dict.fromkeys(names, 0)):
        yield from found


def _look_up(folder: RemoteFolder, names: Sequence[str]) -> list[Stored | None]:
    addresses = [folder.locate(name) for name in names]

    def ask(files: Any) -> list[Stored | None]:
        return backends.ASK[folder.scheme](files, addresses)

    try:
        return _retried(folder, names[0], "read", ask)
    except FileNotFoundError:  # of the bucket
        return [None] * len(names)


def length_of(folder: RemoteFolder, name: str) -> int | None:
    """Ask for the length of a file at any address, bytes; None if it is missing or does not say.

    Raises:
        StoreError: If the store does not answer.
    """
    try:
        found = _retried(folder, name, "read", lambda files: files.info(folder.locate(name)))
    except FileNotFoundError:
        return None
    return None if found["size"] is None or found["type"] != "file" else int(found["size"])


def read_object(
    folder: RemoteFolder, name: str, *, start: int | None = None, end: int | None = None
) -> bytes:
    """Read a whole object, or its bytes from `start` to before `end`, as far as it has them.

    Raises:
        FileNotFoundError: If there is none; it has no filename, unlike a local one's.
        StoreError: If it cannot be read.
    """

    def fetch(files: Any) -> bytes:
        data: bytes = files.cat_file(folder.locate(name), start=start, end=end)
        return data

    return _retried(folder, name, "read", fetch)


def read_objects(folder: RemoteFolder, names: Collection[str]) -> Iterator[bytes]:
    """Read many objects, in their order, a few at a time; raises as `read_object`."""
    return _at_once(lambda name: read_object(folder, name), names)


def write_object(folder: RemoteFolder, name: str, data: bytes) -> None:
    """Write a small object, in place of the one that is there.

    Raises:
        StoreError: If it cannot be written.
    """
    write_objects(folder, {name: data})


def write_objects(folder: RemoteFolder, contents: Mapping[str, bytes]) -> None:
    """Write many small objects by name, a few at a time; raises as `write_object`."""

    def write(names: Sequence[str]) -> None:
        some = {folder.locate(name): contents[name] for name in names}
        with _writing(folder, names[0]):
            _retried(
                folder, names[0], "write", lambda files: backends.WRITE[folder.scheme](files, some)
            )

    list(_chunked(folder, write, {name: len(data) for name, data in contents.items()}))


def upload_file(
    folder: RemoteFolder,
    name: str,
    path: Path,
    *,
    sha256: str,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write a file as an object, with its SHA-256 beside it, and check what has arrived.

    Its length must be the file's. Where the store gives an MD5, it must be that of the file or of
    its parts; a store that encrypts gives another, so then the object is read back and hashed.

    Args:
        folder: Where to write it.
        name: Its name there.
        path: The file.
        sha256: The digest of its bytes.
        beside: Small objects that are written once it has arrived; at Hugging Face they share its
            commit.

    Raises:
        StoreError: If it cannot be written, or other bytes have arrived.
    """
    beside = beside or {}
    address, num_bytes = folder.locate(name), path.stat().st_size
    others = {folder.locate(other): data for other, data in beside.items()}

    def send(files: Any) -> None:
        backends.SEND[folder.scheme](files, path, address, sha256, others)
        (stored,) = backends.ASK[folder.scheme](files, [address])
        if stored is None or not stored.is_of(num_bytes, sha256):
            found = f"{stored.num_bytes} bytes, not {num_bytes}" if stored else "nothing"
            raise OSError(f"{found}, or another digest")
        is_known = stored.md5 is None or stored.md5 == _md5_like(stored.md5, path)
        if not is_known and _sha256(files, address) != sha256:
            raise OSError("other bytes than were sent")

    with _writing(folder, name):
        _retried(folder, name, "write", send)
    if folder.scheme not in backends.SENDS_BESIDE:
        write_objects(folder, beside)


def remove_objects(folder: RemoteFolder, names: Collection[str]) -> None:
    """Remove objects; one that is not there does no harm.

    Raises:
        StoreError: If one cannot be removed.
    """
    addresses = [folder.locate(name) for name in names]
    for start in range(0, len(addresses), REMOVED_AT_ONCE):
        some = addresses[start : start + REMOVED_AT_ONCE]
        _retried(folder, "", "remove from", partial(backends.REMOVE[folder.scheme], some))


def abort_uploads(folder: RemoteFolder, names: Collection[str]) -> None:
    """Give up what killed processes have sent of objects, as far as the store lists it: S3 does.

    Raises:
        StoreError: If it cannot be given up.
    """
    if folder.scheme != "s3":
        return

    def abort(files: Any) -> None:
        backends.abort_s3(files, folder.address, names)

    try:
        _retried(folder, "", "list the unfinished uploads of", abort)
    except FileNotFoundError:  # another process has ended or given it up
        return


def _address(folder: RemoteFolder, name: str) -> str:
    return folder.locate(name) if name else folder.address


def _chunked(
    folder: RemoteFolder, call: Callable[[Sequence[str]], Answer], sizes: Mapping[str, int]
) -> Iterator[Answer]:
    """Call with some names at a time, as many as the store takes in one request.

    Where it takes many, one request at a time is enough; commits would also be in each other's way.

    Args:
        folder: At which store.
        call: What to call with the names.
        sizes: What each name adds to a request, bytes.
    """
    at_once = backends.AT_ONCE[folder.scheme]
    chunks: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not chunks or len(chunks[-1]) == at_once or size > left:
            chunks.append([])
            left = REQUEST_BYTES
        chunks[-1].append(name)
        left -= size
    return _at_once(call, chunks, threads=THREADS if at_once == 1 else 1)


def _at_once(
    call: Callable[[Name], Answer], names: Iterable[Name], *, threads: int = THREADS
) -> Iterator[Answer]:
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(call, names)
    finally:
        pool.shutdown(cancel_futures=True)


def _retried(folder: RemoteFolder, name: str, verb: str, call: Callable[[Any], Answer]) -> Answer:
    """Call with the file system of a folder, again after a failure that may pass."""
    place = _address(folder, name)
    files = filesystem(folder.scheme)
    for num_failed in range(1, TRIES + 1):
        try:
            return call(files)
        except SrpError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(" ".join(str(error).split()) or place) from error
        except Exception as error:  # each backend has its own tree of errors
            asked_s = asked_wait_s(error)
            if num_failed == TRIES or _is_final(error) or asked_s > LONGEST_WAIT_S:
                raise _refusal(place, verb, error) from error
        time.sleep(max(FIRST_WAIT_S * 4 ** (num_failed - 1), asked_s))
    raise RuntimeError("unreachable")


def _is_final(error: Exception) -> bool:
    """Whether a store will not say anything else when it is asked again."""
    is_unsigned = type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError")
    is_refused = status_of(error) in (401, 403)
    return isinstance(error, PermissionError) or is_unsigned or is_refused


def _refusal(place: str, verb: str, error: Exception) -> StoreError:
    said = getattr(error, "server_message", None)  # Hugging Face's, without links and numbers
    words = f"{status_of(error)}, {said}" if said else str(error)
    text = " ".join(words.split()).rstrip(".") or "no reason"
    return StoreError(
        f"cannot {verb} {place}: {type(error).__name__}: {text[:300]}. Check the address, the "
        "network and your rights there, and run the same command again."
    )


@contextlib.contextmanager
def _writing(folder: RemoteFolder, name: str) -> Iterator[None]:
    """Turn a missing bucket, which a store calls a missing file, into an error of writing."""
    try:
        yield
    except FileNotFoundError as error:
        raise _refusal(folder.locate(name), "write", error) from error


def _md5_like(stored: str, path: Path) -> str:
    """Hash a file as a store did: whole, or as the parts that it was sent in."""
    with path.open("rb") as file:
        if "-" not in stored:
            return hashlib.file_digest(file, _md5).hexdigest()
        parts, count = _md5(), 0
        while data := file.read(PART_BYTES):
            parts.update(_md5(data).digest())
            count += 1
    return f"{parts.hexdigest()}-{count}"


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _sha256(files: Any, address: str) -> str:
    with files.open(address, "rb", block_size=PART_BYTES, cache_type="readahead") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
