"""Download Imagenette or Imagewoof from fast.ai, checked by size and hash; and their class names.

Source: https://github.com/fastai/imagenette. Sizes are those of fastai's own table,
`fastai/data/checks.txt`; SHA-256 of imagenette2* from TensorFlow Datasets, `imagenette/
checksums.tsv`, and of imagewoof2* from the data set registry of FastAI.jl.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from pipeline.common.atomic_io import require_folder, sync_folder
from pipeline.common.errors import ConfigError, DownloadError, VerificationError
from pipeline.datasets.trusted import TrustedRedirects, is_trusted

BASE_URL = "https://s3.amazonaws.com/fast-ai-imageclas"
TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 18


class Archive(NamedTuple):
    """What a published archive holds, to the byte."""

    num_bytes: int
    sha256: str


ARCHIVES = {
    "imagenette2-160": Archive(
        99_003_388, "64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5"
    ),
    "imagenette2-320": Archive(
        341_663_724, "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c"
    ),
    "imagenette2": Archive(
        1_557_161_267, "6cbfac238434d89fe99e651496f0812ebc7a10fa62bd42d6874042bf01de4efd"
    ),
    "imagewoof2-160": Archive(
        92_612_825, "b5ffa16037e07f60882434f55b7814a3d44483f2a484129f251604bc0d0f8172"
    ),
    "imagewoof2-320": Archive(
        328_387_740, "7db6120fdb9ae079e26346f89e7b00d7f184f8137791609b97fd0405d3f92305"
    ),
    "imagewoof2": Archive(
        1_343_715_595, "de3f58c4ea3e042cf3f8365fbc699288cfe1d8c151059040d181c221bd5a55b8"
    ),
}


def download(
    name: str,
    out: Path,
    *,
    base_url: str = BASE_URL,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Fetch one archive; go on where an interrupted download stopped.

    Bytes gather in `NAME.tgz.part`, and `NAME.tgz` appears once they are all there and checked.

    Args:
        name: One of `ARCHIVES`.
        out: Folder to save it to; made if absent.
        base_url: Where `NAME.tgz` lies: https, or http on this machine.
        on_progress: Called with bytes at hand and bytes in all.

    Returns:
        The path of `NAME.tgz`. One that is already there and right is returned at once.

    Raises:
        ConfigError: If there is no such archive or the URL is not https.
        DownloadError: If the server cannot be reached or stops early; what came is kept.
        VerificationError: If the bytes are not those that were published.
    """
    if name not in ARCHIVES:
        raise ConfigError(f"NAME must be one of {', '.join(ARCHIVES)}; got {name!r}.")
    archive, url = ARCHIVES[name], f"{base_url.rstrip('/')}/{name}.tgz"
    if not is_trusted(url):
        raise ConfigError(f"the base URL must be https; got {base_url}. Write https://...")
    path = out / f"{name}.tgz"
    if path.exists():
        _check_digest(path, archive, fix=f"Remove {path} and run the same command again.")
        return path
    require_folder(out, "-o/--output")
    part = out / f"{name}.tgz.part"
    report = on_progress or (lambda _done, _total: None)
    with _alone(part):
        if part.stat().st_size != archive.num_bytes:
            _fetch(url, part, archive, report)
        try:
            _check_digest(part, archive, fix="It was removed; run the same command again.")
        except VerificationError:
            part.unlink()
            raise
        part.replace(path)
    sync_folder(out)
    return path


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Keep other downloads off a part; make it if absent. The lock ends with its process.

    Raises:
        DownloadError: If another download has it.
    """
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise DownloadError(
                f"one download at a time may write a file; got another at work on {part}. "
                "Wait until it is done, or name another folder with --output."
            )
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _fetch(url: str, part: Path, archive: Archive, report: Callable[[int, int], None]) -> None:
    """Append what is missing to a part, or write all of it."""
    at_hand = part.stat().st_size if part.exists() else 0
    response, start = _open(url, start=at_hand)
    with response:
        _check_announced(response, url, archive.num_bytes - start)
        with part.open("ab" if start else "wb") as file:
            num_bytes = start
            report(num_bytes, archive.num_bytes)
            for chunk in _chunks(response, url):
                num_bytes += file.write(chunk)
                report(num_bytes, archive.num_bytes)
                if num_bytes > archive.num_bytes:
                    break  # another file, and perhaps an endless one; its digest will say so
            file.flush()
            os.fsync(file.fileno())
    if num_bytes < archive.num_bytes:
        raise _stopped(url, f"the end after {num_bytes} of {archive.num_bytes} bytes")


def _open(url: str, *, start: int) -> tuple[http.client.HTTPResponse, int]:
    """Ask for a file from one byte on.

    Returns:
        The response, and the byte that it really starts at: `start`, or 0 where the server has
        ranges neither of this file nor in general.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = Request(url, headers=headers)  # noqa: S310 - download() let only https through
    try:
        response = build_opener(TrustedRedirects).open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(url, start=0)
        raise _unreachable(url, f"HTTP status {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise _unreachable(url, str(reason) or type(reason).__name__) from error
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return response, 0
    if re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
        return response, start
    response.close()
    if not start:
        raise _unreachable(url, "HTTP status 206, a part of it where all was asked for,")
    return _open(url, start=0)


def _check_announced(response: http.client.HTTPResponse, url: str, expected: int) -> None:
    """Refuse another file, such as a login page, before it overwrites what is at hand.

    Raises:
        VerificationError: If the server is about to send another number of bytes.
    """
    announced = response.headers.get("Content-Length", str(expected))
    if announced != str(expected):
        raise VerificationError(
            f"the archive must have {expected} bytes to come; got {announced} from {url}. "
            "Open the URL in a browser: a proxy or a login page may answer in its place."
        )


def _chunks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    """Read a response to its end, telling the network's failures from the disk's."""
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _stopped(url, str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _check_digest(path: Path, archive: Archive, *, fix: str) -> None:
    """Compare a file with what was published.

    Raises:
        VerificationError: If its size or its hash differs.
    """
    num_bytes = path.stat().st_size
    if num_bytes != archive.num_bytes:
        raise VerificationError(
            f"the archive must hold {archive.num_bytes} bytes; got {num_bytes} in {path}. {fix}"
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != archive.sha256:
        raise VerificationError(
            f"the archive's SHA-256 must be {archive.sha256}; got {sha256} in {path}. {fix}"
        )


def _unreachable(url: str, reason: str) -> DownloadError:
    archive = url.rpartition("/")[2]
    return DownloadError(
        f"the archive must be reachable; got {reason} from {url}. Check the network, or use a "
        f"copy: srp-data build-shards /path/to/{archive} shards"
    )


def _stopped(url: str, reason: str) -> DownloadError:
    return DownloadError(
        f"the archive must arrive whole; got {reason} from {url}. "
        "Run the same command again to go on from there."
    )
