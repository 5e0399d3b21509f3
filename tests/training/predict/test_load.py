"""A checkpoint is enough to predict: it names its classes and holds its rule for images."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError
from training.config import TrainConfig
from training.data.processes import Process
from training.predict.load import load_run
from training.run.load import load_model
from training.saved.checkpoint import pack_checkpoint, read_meta
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

CPU = torch.device("cpu")
Finished = tuple[RunPaths, RunRecord]


def test_a_checkpoint_holds_the_names_of_its_classes_and_the_spec_of_its_images(
    finished: Finished, opened: ShardFolder
) -> None:
    for file in (finished[0].last, finished[0].best):
        meta = read_meta(file)
        assert meta.class_names == opened.manifest.class_names
        assert meta.classes == opened.manifest.classes
        assert meta.spec == opened.manifest.spec


def test_a_checkpoint_alone_gives_the_networks_of_its_run(
    finished: Finished, opened: ShardFolder, tmp_path: Path, alone: Process
) -> None:
    shutil.copy(finished[0].last, tmp_path / "copy.safetensors")
    expected = load_model(finished[0], opened, workers=1, process=alone).state_dict()
    for place in (tmp_path / "copy.safetensors", finished[0].folder):
        run = load_run(place, CPU)
        found = run.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert run.class_names == opened.manifest.class_names
        assert not run.notes
        assert not run.model.training


def old_checkpoint(run: RunPaths, file: Path) -> None:
    """Write a run's weights as versions did that knew no names of classes."""
    old = replace(read_meta(run.last), class_names=())
    write_file(file, pack_checkpoint(old, model=load_run(run.last, CPU).model))


def test_an_old_checkpoint_takes_the_names_from_the_record_next_to_it(
    finished: Finished, tmp_path: Path
) -> None:
    paths, record = finished
    old_checkpoint(paths, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"Put its run's record\.json next to it") as missing:
        load_run(tmp_path, CPU)
    assert "got 0 names of 10 classes" in str(missing.value)
    fields = json.loads(paths.record.read_bytes()) | {"last": "", "best": "", "before": []}
    (tmp_path / "record.json").write_text(json.dumps(fields))
    assert load_run(tmp_path, CPU).class_names == record.data.class_names


def test_the_checkpoint_of_a_folder_must_be_the_one_that_its_record_names(
    finished: Finished, tmp_path: Path
) -> None:
    paths, _ = finished
    shutil.copy(paths.record, tmp_path)
    old_checkpoint(paths, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="must be the one that the run's record names"):
        load_run(tmp_path, CPU)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"must have a checkpoint; got none at .*nothing"):
        load_run(tmp_path / "nothing", CPU)
    with pytest.raises(CheckpointError, match=r"got none at .*last\.safetensors"):
        load_run(tmp_path, CPU)
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        load_run(tmp_path / "text", CPU)


@pytest.mark.parametrize(
    ("policy", "name", "note"),
    [
        ("whole", "full", "no proposer: it takes the crop 'full' of each"),
        ("centre", "centre", "no proposer: it takes the crop 'centre' of each"),
        ("random", "full", "neither a proposer nor a crop of its own .*: the whole image"),
        ("mean", "full", "neither a proposer nor a crop of its own .*: the whole image"),
    ],
)
def test_a_run_without_a_proposer_takes_one_crop_and_says_which(
    policy: str, name: str, note: str, tiny: Callable[..., TrainConfig],
    train: Callable[..., RunRecord], tmp_path: Path,
) -> None:  # fmt: skip
    train(tiny(policy=policy), tmp_path / "run")
    run = load_run(tmp_path / "run", CPU)
    chosen = run.model.fixed_index or 0
    assert run.model.names[chosen] == name
    (line,) = run.notes
    assert re.search(note, line)
