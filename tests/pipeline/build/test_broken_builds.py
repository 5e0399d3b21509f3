"""Faults: kill -9 at any point of a build, and a disk that is full, read-only or broken.

`tests/faults/disk.py` injects them.
"""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[3]
SIZES = {"canvas_size": 24, "crop_size": 16, "glimpse_size": 8}


@pytest.fixture(
    params=[
        pytest.param(1, id="every step", marks=pytest.mark.sweep),
        pytest.param(9, id="one step in nine"),
    ]
)
def stride(request: pytest.FixtureRequest) -> int:
    """How many steps lie between two that a build is broken at."""
    return int(request.param)


@pytest.fixture
def few_images(image_tree: Path, tmp_path: Path) -> Path:
    """Four images of one class; the shards hold up to two each."""
    for name in ("train/cat/cat_000", "train/cat/cat_001", "train/cat/cat_002", "val/cat/cat_000"):
        path = tmp_path / f"few/{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_tree / f"{name}.JPEG", path)
    return tmp_path / "few"


@pytest.fixture
def build_few(make_shards: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda *_, **__: 2)

    def make(source: Path, out: Path, **options: Any) -> dict[str, str]:
        make_shards(source, out, **SIZES, **options)
        return {
            path.relative_to(out).as_posix(): digest(path)
            for path in out.rglob("*")
            if path.is_file()
        }

    return make


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inject(folder: Path, **order: Any) -> list[dict[str, str]]:
    """Let a process of its own break builds; return what it told."""
    path = folder / "order.json"
    path.write_text(json.dumps(order, default=str))
    command = [sys.executable, REPO / "tests/faults/disk.py", path]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def kill_everywhere(folder: Path, **order: Any) -> tuple[Counter[str], list[str]]:
    """Return the kinds of steps that a build was killed at, and what was reused after each."""
    told = inject(folder, **order)
    kinds = Counter(line["kind"] for line in told if "kind" in line)
    return kinds, [line["reused"] for line in told if "reused" in line]


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_build_killed_at_any_step_is_finished_by_the_same_command_to_the_same_bytes(
    kind: str, few_images: Path, build_few: Any, stride: int, tmp_path: Path
) -> None:
    source = few_images
    if kind == "archive":
        source = tmp_path / "few.tgz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(few_images, "few")
    good = build_few(source, tmp_path / "good")
    kinds, reused = kill_everywhere(
        tmp_path, source=source, out=tmp_path / "out", before=None, good=[good], stride=stride
    )
    assert kinds.total() == len(reused) > 89 // stride
    if stride == 1:
        assert set(kinds) >= {"open", "write", "fsync", "replace", "unlink", "rmdir"}
        assert kinds["write"] >= 2 * (4 + 3 + 3 + 3 + 3), "images, records, indices and the rest"
    assert "1 finished shards: train-000000.tar" in reused
    assert "3 finished shards: train-000000.tar, train-000001.tar, val-000000.tar" in reused


def test_a_published_folder_is_never_wrong_while_an_image_that_was_mended_is_taken_in(
    few_images: Path, build_few: Any, stride: int, tmp_path: Path
) -> None:
    image = few_images / "train/cat/cat_001.JPEG"
    data = image.read_bytes()
    image.write_bytes(bytes(len(data)))  # the listing, and so the fingerprint, stays the same
    before = build_few(few_images, tmp_path / "before", max_rejects=1)
    assert "rejects.jsonl" in before
    image.write_bytes(data)
    good = build_few(few_images, tmp_path / "good")
    assert "rejects.jsonl" not in good
    kinds, reused = kill_everywhere(
        tmp_path, source=few_images, out=tmp_path / "out", before=tmp_path / "before",
        good=[before, good], stride=stride,
    )  # fmt: skip
    assert kinds.total() == len(reused) > 40 // stride
    assert all(reused), "what was published and whole is never built again"


def test_a_shard_that_was_lost_or_spoilt_comes_back_while_the_manifest_stands(
    few_images: Path, build_few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    good = build_few(few_images, out)
    (out / "val-000000.tar").unlink()
    (out / "train-000001.tar").write_bytes(b"spoilt")
    unlinked = []
    unlink = Path.unlink

    def note_and_unlink(path: Path, **options: Any) -> None:
        unlinked.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", note_and_unlink)
    assert build_few(few_images, out) == good
    assert "holder.json" in unlinked
    assert "manifest.json" not in unlinked


KINDS = ("open", "write", "flush", "close", "fsync", "replace")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_at_any_step_leaves_whole_files_and_is_named_in_one_line(
    error: int, few_images: Path, build_few: Any, stride: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    good = build_few(few_images, tmp_path / "good")
    told = inject(
        tmp_path, source=few_images, out=out, before=None, error=error, good=[good], stride=stride
    )
    kinds = Counter(fault["kind"] for fault in told)
    assert kinds.total() > 89 // stride
    if stride == 1:
        assert set(kinds) >= {*KINDS, "mkdir"}
        assert kinds["write"] >= 2 * (4 + 3 + 3 + 3 + 3), "images, records, indices and the rest"
    for fault in told:
        line, kind = fault["line"], fault["kind"]
        path = named(Path(fault["path"]))
        if kind == "mkdir" and error == errno.EROFS and path in (out, out / ".build"):
            assert line.startswith(f"error: OUT must be a folder that can be written; got {out}: ")
            continue
        assert line.startswith("error: cannot access ")
        assert f": {os.strerror(error)}" in line
        assert f"cannot access {path}: " in line, fault
        is_of_a_file = kind in KINDS and path not in (out, out / ".build", path.parent)
        if error in (errno.ENOSPC, errno.EDQUOT) and is_of_a_file and path.suffix:
            assert re.search(r" \(needs about [1-9][\d,]* bytes\)\. ", line), fault
        assert line.endswith(FIXES[error])


FIXES = {
    errno.ENOSPC: "Free some space there and run the same command again.",
    errno.EDQUOT: "Free some space there and run the same command again.",
    errno.EROFS: "Make the disk writable, or name a folder on another.",
    errno.EIO: "Check the disk and its cables, and run the same command again.",
}


def named(path: Path) -> Path:
    """Give the file that is written aside under this path, if it is."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]+\.partial", path.name)
    return path.with_name(found[1]) if found else path


def test_a_limit_on_the_size_of_files_is_met_in_a_real_build_with_its_path_and_bytes(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sizes = ("--canvas-size=168", "--crop-size=112", "--glimpse-size=32", "--shard-mib=1")
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", image_tree, out, *sizes]
    limit = (400_000, 400_000)
    result = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"error: cannot access {out}/\w+-\d+\.tar: File too large \(needs about [\d,]+ "
        rf"bytes\)\. Raise the limit on the size of files \(ulimit -f\) and "
        r"run the same command again\.",
        line,
    )
    assert not [path for path in out.iterdir() if path.name != ".build"]
    make_shards(image_tree, out, shard_mib=1)


@pytest.mark.parametrize(("codec", "share"), [("raw", 1), ("zstd", 2)])
def test_a_build_that_cannot_fit_is_refused_before_it_begins(
    codec: str, share: int, image_tree: Path, srp_data: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    arguments = ("build-shards", image_tree, out, f"--codec={codec}", "--limit=1", *TINY)
    usage = shutil.disk_usage(tmp_path)
    free = 5000
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=free))
    refused = srp_data(*arguments)
    assert refused.exit_code == 1
    line = refused.stderr.splitlines()[-1]
    found = re.fullmatch(
        r"error: the shards need about ([\d,]+) bytes; got "
        rf"5,000 free at {out}\. Free some space there, or choose a folder on another disk\.",
        line,
    )
    assert found
    assert not out.exists()
    needed = int(found[1].replace(",", ""))
    free = needed // share - 1
    assert srp_data(*arguments).exit_code == 1
    free = needed // share
    assert srp_data(*arguments).exit_code == 0
    assert sum(path.stat().st_size for path in out.glob("*.tar")) <= needed
    free = 0
    assert srp_data(*arguments).exit_code == 0, "nothing is left to be built"


TINY = ("--canvas-size=24", "--crop-size=16", "--glimpse-size=8")
