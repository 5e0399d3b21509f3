"""Fault: a worker dies or hangs. Real builds with real worker processes, which images poison."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from poisoned import poison, write_poisoned

from pipeline.common.errors import RejectsError, SrpError
from pipeline.write.resume import Finished
from pipeline.write.worker import Task, build_shard

VICTIM = "train/dog/dog_003.JPEG"

# Several shards: what happens to one must leave the others alone.
OPTIONS = {"shard_mib": 1}


@pytest.fixture
def build_poisoned(make_shards: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("pipeline.build.build.build_shard", write_poisoned)
    return functools.partial(make_shards, **OPTIONS)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["kill", "sleep"])
def test_a_build_that_loses_a_worker_once_ends_in_the_bytes_of_an_unbroken_one(
    how: str, own_tree: Path, make_shards: Any, build_poisoned: Any, tmp_path: Path
) -> None:
    poison(own_tree / VICTIM, how, once=tmp_path / "marker")
    built = build_poisoned(own_tree, tmp_path / "broken", workers=2, image_timeout_s=3)
    assert (tmp_path / "marker").exists(), "no worker was lost"
    make_shards(own_tree, tmp_path / "unbroken", shard_mib=1)
    assert built.manifest.rejects == ()
    assert len(built.retried) == 1
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


@pytest.mark.quick("kill-died")
@pytest.mark.parametrize(("how", "word"), [("kill", "died"), ("stop", "hung")])
def test_an_image_that_ends_two_workers_is_quarantined_by_name(
    how: str, word: str, own_tree: Path, build_poisoned: Any, tmp_path: Path
) -> None:
    poison(own_tree / VICTIM, how)
    reason = f"a worker {word} on it twice"
    with pytest.raises(RejectsError, match=rf"got 1, the first {VICTIM} \({reason}\); all are in "):
        build_poisoned(own_tree, tmp_path / "out", workers=2, image_timeout_s=3)
    reject = {"path": VICTIM, "reason": reason}
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text()) == reject
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_all_but_the_quarantined_image_is_there_for_any_number_of_workers_and_after_a_resume(
    own_tree: Path, build_poisoned: Any, tmp_path: Path
) -> None:
    poison(own_tree / VICTIM, "kill")
    with pytest.raises(RejectsError):
        build_poisoned(own_tree, tmp_path / "out", workers=3)
    resumed = build_poisoned(own_tree, tmp_path / "out", max_rejects=1)
    assert resumed.reused
    assert [reject.path for reject in resumed.manifest.rejects] == [VICTIM]
    for split, num_samples in (("train", 17), ("val", 9)):
        shards = resumed.manifest.of_split(split)
        keys = {key for shard in shards for key in shard.samples.keys}
        assert len(keys) == num_samples
        assert "dog/dog_003" not in keys or split == "val"
    build_poisoned(own_tree, tmp_path / "fresh", max_rejects=1, workers=2)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")
    again = build_poisoned(own_tree, tmp_path / "out", max_rejects=1)
    assert again.manifest == resumed.manifest
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_decoder_that_takes_many_images_at_a_time_still_has_the_right_one_quarantined(
    own_tree: Path, build_poisoned: Any, tmp_path: Path
) -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali, which is not installed")
    poison(own_tree / VICTIM, "kill")
    options = {"decoder": "dali", "max_rejects": 1, "shard_mib": 9}
    built = build_poisoned(own_tree, tmp_path / "out", **options)
    assert [reject.path for reject in built.manifest.rejects] == [VICTIM]
    assert built.manifest.num_samples("train") == 17


def test_the_command_says_that_workers_were_lost_and_what_became_of_it(
    own_tree: Path, srp_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.build.build_shard", write_poisoned)
    poison(own_tree / VICTIM, "kill")
    sizes = ("--canvas-size=24", "--crop-size=16", "--glimpse-size=8")
    result = srp_data("build-shards", own_tree, tmp_path / "out", *sizes, "--max-rejects=1")
    assert result.exit_code == 0
    shard = "train-000000.tar"
    assert f"retried after a worker died or hung: {shard}, {shard}\n" in result.stderr
    assert f"rejected {VICTIM}: a worker died on it twice\n" in result.stdout
    refused = srp_data("build-shards", own_tree, tmp_path / "other", *sizes)
    assert refused.exit_code == 4


def test_many_poisonous_images_beside_each_other_are_each_found(
    own_tree: Path, build_poisoned: Any, tmp_path: Path
) -> None:
    poisoned = {f"train/cat/cat_00{number}.JPEG" for number in range(4)}
    for path in poisoned:
        poison(own_tree / path, "segfault")
    built = build_poisoned(own_tree, tmp_path / "out", max_rejects=4, shard_mib=9)
    assert {reject.path for reject in built.manifest.rejects} == poisoned
    assert built.manifest.num_samples("train") == 14


def test_workers_that_die_at_everything_end_the_build_in_one_line(
    own_tree: Path, build_poisoned: Any, tmp_path: Path
) -> None:
    for image in own_tree.rglob("*.JPEG"):
        poison(image, "kill")
    with pytest.raises(SrpError, match=r"^16 workers died or hung on train-000000.tar"):
        build_poisoned(own_tree, tmp_path / "out", max_rejects=99, shard_mib=9)


def write_and_die(task: Task) -> Finished:
    build_shard(task)
    os._exit(1)


def test_a_worker_that_dies_after_its_last_image_twice_blames_none(
    image_tree: Path, make_shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.build.build.build_shard", write_and_die)
    with pytest.raises(SrpError, match=r"^2 workers died .* after its last image\. Run"):
        make_shards(image_tree, tmp_path / "out")
