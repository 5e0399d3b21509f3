"""A stand-in for the Hub of Hugging Face, in memory: it is NOT the Hub, which nobody can install.

It was written after the source of the Hub's own client (huggingface_hub 2.4), which the tests run
unchanged: what that client sends is taken, and what it reads of an answer is given. So it shows
that our calls fit that client, and what they leave at a server that keeps the protocol. What only
the real Hub knows, it cannot show: its limits, how it orders commits, how long it takes.

Spoken: information about a repository, the tree in pages (`Link`), `paths-info`, `preupload`, the
LFS batch in both transfers (basic, and multipart above `part_bytes`), LFS verify, commits as
NDJSON, and `resolve`, which redirects to a storage of another origin for what is in LFS. Large
files are told from small ones as `.gitattributes` of a new dataset does. There is no Xet: whoever
uses this sets HF_HUB_DISABLE_XET, as `served_hub.py` does, since the client does not ask before.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from served import Server, range_of

LARGE = (".tar", ".tgz", ".gz", ".zst", ".npy", ".bin")  # what LFS keeps, of any size
LARGE_BYTES = 10 << 20  # and what is longer
WRITER, READER = "hf_writer", "hf_reader"  # tokens
Fault = Callable[["Request"], bool]


@dataclass(frozen=True)
class Blob:
    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        kept = self.data
        if self.is_lfs:
            kept = f"oid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept, usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    is_private: bool = False
    files: dict[str, Blob] = field(default_factory=lambda: {".gitattributes": Blob(b"*", False)})
    commits: list[dict[str, list[str]]] = field(default_factory=list)  # paths by key

    @property
    def head(self) -> str:
        return hashlib.sha1(b"%d" % len(self.commits), usedforsecurity=False).hexdigest()


class Hub:
    """Repositories by name, what has been uploaded, what was asked, and the faults that it meets.

    A fault answers a request in place of the server, and says so.
    """

    def __init__(self) -> None:
        self.repos = {"me/mine": Repo()}
        self.uploaded: dict[str, bytes] = {}  # LFS, by SHA-256; a commit may name them
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.page = 1000
        self.part_bytes = 16 << 20
        self.num_sent = 0  # bytes of files, as answers
        self.commits_now = threading.Lock()
        self.server = Server(("127.0.0.1", 0), type("OwnRequest", (Request,), {"hub": self}))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self.server.server_port}/storage"

    def files(self, folder: str = "", repo: str = "me/mine") -> dict[str, bytes]:
        """Everything in a folder of a repository."""
        start = f"{folder}/" if folder else ""
        return {
            name.removeprefix(start): blob.data
            for name, blob in self.repos[repo].files.items()
            if name.startswith(start) and name != ".gitattributes"
        }

    def asked(self, method: str, pattern: str) -> int:
        """Count the requests for paths in which a pattern occurs."""
        return sum(
            made == method and bool(re.search(pattern, path)) for made, path in self.requests
        )


class Refusal(Exception):  # noqa: N818 - it becomes an answer
    """An answer that is an error: a status, and what the Hub says in its headers."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        self.status, self.message = status, message
        named = {"X-Error-Message": message, "X-Error-Code": code}
        self.headers = {name: value for name, value in named.items() if value}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True  # an answer is sent in two pieces
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_any(self) -> None:
        self.hub.requests.append((self.command, self.path))
        if any(fault(self) for fault in self.hub.faults):
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        url = urlsplit(self.path)
        try:
            for pattern, answer in ROUTES:
                if match := re.fullmatch(pattern, url.path):
                    given = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    answer(self, body=body, query=parse_qs(url.query), **given)
                    return
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        except Refusal as refusal:
            self.refuse(refusal)

    do_GET = do_HEAD = do_POST = do_PUT = do_any

    def _chunks(self) -> Iterator[bytes]:
        while length := int(self.rfile.readline(), 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def reply(self, content: object, **headers: str) -> None:
        self.send(200, json.dumps(content).encode(), Content_Type="application/json", **headers)

    def refuse(self, refusal: Refusal) -> None:
        text = json.dumps({"error": refusal.message}).encode()
        headers = {name.replace("-", "_"): value for name, value in refusal.headers.items()}
        self.send(refusal.status, text, Content_Type="application/json", **headers)

    def repo(self, name: str, revision: str = "main", *, writes: bool = False) -> Repo:
        """Find a repository that the token may read, or write."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", WRITER, READER):
            raise Refusal(401, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        if not token and (repo is None or repo.is_private or writes):
            raise Refusal(401, "Invalid username or password.")
        if repo is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if writes and token != WRITER:
            raise Refusal(403, "you don't have the rights to write this repository")
        if revision != "main":
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo


def tell_of_repo(request: Request, *, repo: str, revision: str = "main", **_: Any) -> None:
    found = request.repo(repo, revision or "main")
    request.reply({"id": repo, "sha": found.head, "private": found.is_private, "siblings": []})


def entry_of(path: str, blob: Blob | None) -> dict[str, Any]:
    """Describe a file, or a folder."""
    if blob is None:
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    size = len(blob.data)
    entry = {"type": "file", "oid": blob.git_oid, "size": size, "path": path}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": 134}
    return entry


def entries_of(repo: Repo) -> dict[str, Blob | None]:
    """Give files and folders by path."""
    found: dict[str, Blob | None] = dict(repo.files)
    for path in repo.files:
        while path := path.rpartition("/")[0]:
            found[path] = None
    return dict(sorted(found.items()))


def list_tree(
    request: Request, *, repo: str, revision: str, path: str, query: dict[str, list[str]], **_: Any
) -> None:
    entries = entries_of(request.repo(repo, revision))
    if path and entries.get(path, b"") is not None:
        raise Refusal(404, f"{path} does not exist on main", "EntryNotFound")
    start = f"{path}/" if path else ""
    is_deep = query.get("recursive") == ["true"]
    names = [
        name
        for name in entries
        if name.startswith(start) and (is_deep or "/" not in name[len(start) :])
    ]
    first = int(query.get("cursor", ["0"])[0])
    after = first + request.hub.page
    headers = {}
    if after < len(names):
        place = f"{request.hub.endpoint}{urlsplit(request.path).path}"
        headers["Link"] = f'<{place}?recursive={str(is_deep).lower()}&cursor={after}>; rel="next"'
    request.reply([entry_of(name, entries[name]) for name in names[first:after]], **headers)


def tell_of_paths(request: Request, *, repo: str, revision: str, body: bytes, **_: Any) -> None:
    entries = entries_of(request.repo(repo, revision))
    paths = parse_qs(body.decode())["paths"]
    if len(paths) > 1000:
        raise Refusal(413, "too many parameters")
    request.reply([entry_of(path, entries[path]) for path in paths if path in entries])


def sort_by_size(request: Request, *, repo: str, revision: str, body: bytes, **_: Any) -> None:
    """Say of each file whether LFS is to keep it, and what is there already."""
    found = request.repo(repo, revision, writes=True)
    answers = []
    for file in json.loads(body)["files"]:
        is_lfs = file["path"].endswith(LARGE) or file["size"] > LARGE_BYTES
        answer = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular"}
        answer["shouldIgnore"] = False
        if blob := found.files.get(file["path"]):
            answer["oid"] = blob.sha256 if blob.is_lfs else blob.git_oid
        answers.append(answer)
    request.reply({"files": answers})


def batch(request: Request, *, repo: str, body: bytes, **_: Any) -> None:
    """Say where each object of LFS is to be put; nothing for those that are there."""
    request.repo(repo, writes=True)
    asked = json.loads(body)
    hub, answers = request.hub, []
    for wanted in asked["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        answer = {"oid": oid, "size": size}
        if oid not in hub.uploaded:
            verify = f"{hub.endpoint}/datasets/{repo}.git/info/lfs/objects/verify"
            upload: dict[str, Any] = {"href": f"{hub.storage}/{oid}"}
            if size > hub.part_bytes and "multipart" in asked["transfers"]:
                numbers = range(1, -(-size // hub.part_bytes) + 1)
                parts = {str(number): f"{hub.storage}/{oid}/{number}" for number in numbers}
                href = f"{hub.endpoint}/api/complete_multipart/{oid}"
                upload = {"href": href, "header": {"chunk_size": str(hub.part_bytes), **parts}}
            answer["actions"] = {"upload": upload, "verify": {"href": verify}}
        answers.append(answer)
    request.reply({"transfer": "basic", "objects": answers})


def put(request: Request, *, oid: str, number: str = "", body: bytes, **_: Any) -> None:
    """Take an object, or a part of one, as the storage behind the Hub does."""
    if request.headers.get("Authorization"):
        raise Refusal(400, "the Hub's token is not for its storage")
    if number:
        request.hub.parts[oid, int(number)] = body
    else:
        store(request.hub, oid, body)
    request.send(200, b"", ETag=f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')


def complete(request: Request, *, oid: str, body: bytes, **_: Any) -> None:
    numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
    store(request.hub, oid, b"".join(request.hub.parts.pop((oid, n)) for n in numbers))
    request.reply({"success": True})


def store(hub: Hub, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, "the SHA-256 is another")
    hub.uploaded[oid] = data


def verify(request: Request, *, repo: str, body: bytes, **_: Any) -> None:
    request.repo(repo, writes=True)
    if json.loads(body)["oid"] not in request.hub.uploaded:
        raise Refusal(404, "Object does not exist")
    request.reply({"success": True})


def commit(request: Request, *, repo: str, revision: str, body: bytes, **_: Any) -> None:
    """Do all of a commit or none; of two at a time, one is refused."""
    found = request.repo(repo, revision, writes=True)
    if not request.hub.commits_now.acquire(blocking=False):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    try:
        files, made = dict(found.files), {}
        for line in body.splitlines():
            key, value = (operation := json.loads(line))["key"], operation["value"]
            made.setdefault(key, []).append(value.get("path") or value.get("summary"))
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in request.hub.uploaded:
                    raise Refusal(400, "Your push was rejected: an LFS pointer has no object")
                files[value["path"]] = Blob(request.hub.uploaded[value["oid"]], is_lfs=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    text = "A file with this name doesn't exist"
                    raise Refusal(404, text, "EntryNotFound")
            elif key != "header":
                raise Refusal(400, f"no such operation: {key}")
        found.files = files
        found.commits.append(made)
    finally:
        request.hub.commits_now.release()
    url = f"{request.hub.endpoint}/datasets/{repo}/commit/{found.head}"
    request.reply({"success": True, "commitUrl": url, "commitOid": found.head, "hookOutput": ""})


def resolve(request: Request, *, repo: str, revision: str, path: str, **_: Any) -> None:
    """Give a small file; redirect to the storage for a large one."""
    found = request.repo(repo, revision)
    if (blob := found.files.get(path)) is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {"X_Repo_Commit": found.head, "Accept_Ranges": "bytes"}
    if not blob.is_lfs:
        send_range(request, blob.data, ETag=f'"{blob.git_oid}"', **headers)
        return
    headers |= {"X_Linked_ETag": f'"{blob.sha256}"', "X_Linked_Size": str(len(blob.data))}
    request.send(302, b"", Location=f"{request.hub.storage}/{blob.sha256}", **headers)


def fetch(request: Request, *, oid: str, **_: Any) -> None:
    if request.headers.get("Authorization"):
        raise Refusal(400, "the Hub's token is not for its storage")
    send_range(request, request.hub.uploaded[oid], ETag=f'"{oid}"')


def send_range(request: Request, data: bytes, **headers: str) -> None:
    wanted = request.headers.get("Range", "")
    if not wanted:
        request.hub.num_sent += len(data)
        request.send(200, data, **headers)
        return
    start, end = range_of(wanted)
    if start >= len(data):
        raise Refusal(416, "", Content_Range=f"bytes */{len(data)}")
    part = data[start:end]
    request.hub.num_sent += len(part)
    place = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
    request.send(206, part, Content_Range=place, **headers)


def any_storage(request: Request, **given: Any) -> None:
    (put if request.command == "PUT" else fetch)(request, **given)


API = r"/api/datasets/(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (API, tell_of_repo),
    (API + r"/revision/(?P<revision>[^/]+)", tell_of_repo),
    (API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", list_tree),
    (API + r"/paths-info/(?P<revision>[^/]+)", tell_of_paths),
    (API + r"/preupload/(?P<revision>[^/]+)", sort_by_size),
    (API + r"/commit/(?P<revision>[^/]+)", commit),
    (r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
    (r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/verify", verify),
    (r"/api/complete_multipart/(?P<oid>\w+)", complete),
    (r"/storage/(?P<oid>\w+)(?:/(?P<number>\d+))?", any_storage),
    (r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
