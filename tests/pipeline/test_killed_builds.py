"""Fault: kill -9 at any point of a build. See `faults/disk.py` for how."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
SIZES = {"canvas_size": 24, "crop_size": 16, "glimpse_size": 8}


@pytest.fixture
def few_images(image_tree: Path, tmp_path: Path) -> Path:
    """Five images of one class; the shards hold two each."""
    for name in ("train/cat/cat_000", "train/cat/cat_001", "train/cat/cat_002", "val/cat/cat_000"):
        path = tmp_path / f"few/{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_tree / f"{name}.JPEG", path)
    return tmp_path / "few"


@pytest.fixture
def build_few(make_shards: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("pipeline.build._samples_per_shard", lambda _: 2)

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


def kill_everywhere(folder: Path, **order: Any) -> tuple[Counter[str], list[str]]:
    """Return the kinds of steps that a build was killed at, and what was reused after each."""
    path = folder / "order.json"
    path.write_text(json.dumps(order, default=str))
    command = [sys.executable, REPO / "tests/pipeline/faults/disk.py", path]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = Counter(line["kind"] for line in told if "kind" in line)
    return kinds, [line["reused"] for line in told if "reused" in line]


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_build_killed_at_any_step_is_finished_by_the_same_command_to_the_same_bytes(
    kind: str, few_images: Path, build_few: Any, tmp_path: Path
) -> None:
    source = few_images
    if kind == "archive":
        source = tmp_path / "few.tgz"
        with tarfile.open(source, "w:gz") as tar:
            tar.add(few_images, "few")
    good = build_few(source, tmp_path / "good")
    kinds, reused = kill_everywhere(
        tmp_path, source=source, out=tmp_path / "out", before=None, good=[good]
    )
    assert set(kinds) >= {"open", "write", "fsync", "replace", "unlink", "rmdir"}
    assert kinds.total() == len(reused) > 80
    assert kinds["write"] >= 4 + 3 + 3 + 3 + 3, "images, records, indices and the rest"
    assert "1 finished shards: train-000000.tar" in reused
    assert "3 finished shards: train-000000.tar, train-000001.tar, val-000000.tar" in reused


def test_a_published_folder_is_never_wrong_while_an_image_that_was_mended_is_taken_in(
    few_images: Path, build_few: Any, tmp_path: Path
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
        good=[before, good],
    )  # fmt: skip
    assert kinds.total() == len(reused) > 40
    assert all(reused), "what was published and whole is never built again"


def test_a_shard_that_was_lost_or_spoilt_comes_back_while_the_manifest_stands(
    few_images: Path, build_few: Any, tmp_path: Path
) -> None:
    good = build_few(few_images, tmp_path / "out")
    manifest = tmp_path / "out/manifest.json"
    (tmp_path / "out/val-000000.tar").unlink()
    (tmp_path / "out/train-000001.tar").write_bytes(b"spoilt")
    written = manifest.stat().st_mtime_ns
    assert build_few(few_images, tmp_path / "out") == good
    assert manifest.stat().st_mtime_ns >= written
