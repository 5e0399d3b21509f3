import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from planned import config

from pipeline.common.checksum import NO_DIGEST, embed_sha256
from pipeline.common.errors import ConfigError, VerificationError
from pipeline.parts.plan import plan_parts
from pipeline.parts.plan_file import load_plan, read_shards

pytestmark = pytest.mark.usefixtures("small_shards")


def test_a_plan_is_read_as_it_was_made(image_tree: Path, tmp_path: Path) -> None:
    made = plan_parts(config(image_tree, tmp_path))
    saved = load_plan(tmp_path)
    numbers = range(len(saved.lines))
    assert saved.with_images(read_shards(saved, numbers, source=image_tree)) == made
    assert read_shards(saved, [4], source=image_tree) == [made.shards[4]]


def test_equal_sources_and_options_give_equal_plans(image_tree: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        plan_parts(config(image_tree, tmp_path / name))
    first, second = (tmp_path / name / ".build/plan.jsonl" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def read_all(out: Path, source: Path) -> None:
    saved = load_plan(out)
    read_shards(saved, range(len(saved.lines)), source=source)


def test_no_flipped_byte_of_a_plan_goes_unnoticed(planned: Path, image_tree: Path) -> None:
    path = planned / ".build/plan.jsonl"
    data = path.read_bytes()
    for offset in range(0, len(data), 97):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(VerificationError, match=r"^a plan must be whole; got .* Run the same "):
            read_all(planned, image_tree)


def change(path: Path, *, line: int, row: list[Any]) -> None:
    """Put a row into a shard's line, with right digests."""
    head, *lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = msgspec.json.encode([row]) + b"\n"
    fields = json.loads(head) | {"plan_sha256": NO_DIGEST}
    digest = hashlib.sha256(lines[line]).hexdigest()
    fields["shards"][line][3:] = [len(lines[line]), digest]
    text = embed_sha256(msgspec.json.encode(fields), "plan_sha256") + b"\n"
    path.write_bytes(text + b"".join(lines))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../train/cat/a.jpg", "train/cat/../../../a.jpg", "train/cat", "other/cat/a",
        "train//a.jpg", r"train/cat/\x2e\x2e/a.jpg", r"train/\x2f/a.jpg", "train/./a",
    ],
)  # fmt: skip
def test_a_path_that_leads_out_of_the_source_is_refused(
    path: str, planned: Path, image_tree: Path
) -> None:
    change(planned / ".build/plan.jsonl", line=2, row=["cat/a", path, 9])
    saved = load_plan(planned)
    with pytest.raises(VerificationError, match=r"got ValueError: the path '.*' in .*plan.jsonl"):
        read_shards(saved, [2], source=image_tree)
    assert read_shards(saved, [3], source=image_tree)


@pytest.mark.parametrize("key", ["", "/cat", "../a", "cat/a.jpg", "cat\n"])
def test_a_key_that_no_plan_gives_is_refused(key: str, planned: Path, image_tree: Path) -> None:
    change(planned / ".build/plan.jsonl", line=0, row=[key, "train/cat/a.jpg", 9])
    with pytest.raises(VerificationError, match=r"got ValueError: the key '.*' in "):
        read_shards(load_plan(planned), [0], source=image_tree)


def test_a_plan_of_another_format_is_refused(planned: Path) -> None:
    path = planned / ".build/plan.jsonl"
    head, rest = path.read_bytes().split(b"\n", 1)
    fields = json.loads(head) | {"plan_sha256": NO_DIGEST, "format": "srp-plan/9"}
    text = embed_sha256(msgspec.json.encode(fields), "plan_sha256")
    path.write_bytes(text + b"\n" + rest)
    with pytest.raises(VerificationError, match="the format 'srp-plan/9', not srp-plan/1"):
        load_plan(planned)


def test_a_folder_that_is_not_there_has_no_plan(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OUT must hold a plan; got none in "):
        load_plan(tmp_path / "none")
