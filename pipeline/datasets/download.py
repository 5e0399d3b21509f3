"""Download Imagenette or Imagewoof from fast.ai, checked by size and SHA-256.

Source: https://github.com/fastai/imagenette. Sizes: fastai's `fastai/data/checks.txt`. SHA-256:
TensorFlow Datasets' `imagenette/checksums.tsv` for imagenette2*, FastAI.jl's registry for
imagewoof2*.
"""

import contextlib
import hashlib
import http.client
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pipeline.common.atomic_io import require_folder, sync_folder
from pipeline.common.errors import ConfigError, DownloadError, VerificationError
from pipeline.common.file_lock import writer_lock
from pipeline.common.progress import SILENT, Progress

BASE_URL = "https://s3.amazonaws.com/fast-ai-imageclas"
TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 18


class Archive(NamedTuple):
    """Size and digest of a published archive."""

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


def download(name: str, out: Path, *, progress: Progress = SILENT) -> Path:
    """Download one archive, or continue an interrupted download.

    Bytes are appended to `NAME.tgz.part`, which becomes `NAME.tgz` when all are there and checked.

    Args:
        name: One of `ARCHIVES`.
        out: Folder to save it to; made if absent.
        progress: Reports bytes.

    Returns:
        The path of `NAME.tgz`. An intact one is returned at once.

    Raises:
        ConfigError: If there is no archive of that name, or another download writes it.
        DownloadError: If the server cannot be reached or stops early; received bytes are kept.
        VerificationError: If the bytes are not those that were published.
    """
    if name not in ARCHIVES:
        raise ConfigError(f"NAME must be one of {', '.join(ARCHIVES)}; got {name!r}.")
    archive, url = ARCHIVES[name], f"{BASE_URL}/{name}.tgz"
    path = out / f"{name}.tgz"
    if path.exists():
        _check_digest(path, archive, fix=f"Remove {path} and run the same command again.")
        return path
    require_folder(out, "-o/--output")
    part = out / f"{name}.tgz.part"
    with _locked(part):
        if part.stat().st_size != archive.num_bytes:
            _fetch(url, part, archive, progress)
        try:
            _check_digest(part, archive, fix="It was removed; run the same command again.")
        except VerificationError:
            part.unlink()
            raise
        part.replace(path)
    sync_folder(out)
    return path


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Make a part if absent, and lock it.

    Raises:
        ConfigError: If another download holds it.
    """
    part.touch()
    rule = "only one download at a time may write a file"
    fix = "Wait until it ends, or choose another folder with --output."
    with writer_lock(part, part.with_name(f".{part.name}.owner"), rule=rule, fix=fix):
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _fetch(url: str, part: Path, archive: Archive, progress: Progress) -> None:
    """Append the missing bytes to a part, or all where the server cannot continue."""
    stage = f"downloading {part.name.partition('.')[0]}"
    response, start = _open(url, start=part.stat().st_size)
    with response:
        _check_announced(response, url, archive.num_bytes - start)
        with part.open("ab" if start else "wb") as file:
            num_bytes = start
            progress.update(stage, num_bytes, archive.num_bytes)
            for chunk in _chunks(response, url):
                num_bytes += file.write(chunk)
                progress.update(stage, num_bytes, archive.num_bytes)
                if num_bytes > archive.num_bytes:
                    break  # another file, perhaps an endless one: its size is refused below
            file.flush()
            os.fsync(file.fileno())
    if num_bytes < archive.num_bytes:
        raise _interrupted(url, f"its end after {num_bytes} of {archive.num_bytes} bytes")


class _NoRedirects(HTTPRedirectHandler):
    """Refuse every redirect: the address is fixed, and one could lead into a private network."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> NoReturn:
        """Raise URLError in place of giving the next request."""
        fp.close()
        raise URLError(f"a redirect to {newurl}")


def _open(url: str, *, start: int) -> tuple[http.client.HTTPResponse, int]:
    """Request a file from one byte on.

    Returns:
        The response, and the byte that it starts at: `start`, or 0 where the server does not
        support ranges or the file has no bytes from `start` on.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = Request(url, headers=headers)  # noqa: S310 - a constant https address
    try:
        response = build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S)
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
        raise _unreachable(url, "HTTP status 206, a part of the file")
    return _open(url, start=0)


def _check_announced(response: http.client.HTTPResponse, url: str, expected: int) -> None:
    """Refuse another file, such as a login page, before it overwrites received bytes.

    Raises:
        VerificationError: If the server announces another number of bytes.
    """
    announced = response.headers.get("Content-Length", str(expected))
    if announced != str(expected):
        raise VerificationError(
            f"the server must send {expected} bytes; it announces {announced} at {url}. "
            "Open the URL in a browser: a proxy or a login page may answer in its place."
        )


def _chunks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    """Read a response to its end; a failure of the network raises DownloadError."""
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _interrupted(url, str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _check_digest(path: Path, archive: Archive, *, fix: str) -> None:
    """Compare a file with the published size and SHA-256.

    Raises:
        VerificationError: If one differs.
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
        f"cannot download {url}: {reason}. Check the network, or use a copy: "
        f"srp-data build-shards /path/to/{archive} shards"
    )


def _interrupted(url: str, reason: str) -> DownloadError:
    return DownloadError(
        f"the download of {url} was interrupted: {reason}. Run the same command again to continue."
    )
