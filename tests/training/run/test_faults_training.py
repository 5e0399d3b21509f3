"""ShardFolder that are damaged while a run trains, and a sample whose loss is no number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import DivergedError, VerificationError
from pipeline.common.progress import Progress
from training.config import TrainConfig
from training.model.classifier import SelectiveClassifier
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record

Tiny = Callable[..., TrainConfig]
Train = Callable[..., RunRecord]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_shard_that_is_damaged_while_a_run_trains_ends_it_by_name(
    damage: str, scene_shards: Path, tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    folder, paths = shutil.copytree(scene_shards, tmp_path / "shards"), RunPaths(folder=tmp_path)
    opened = ShardFolder.open(folder)
    shard = opened.manifest.of_split("train")[0]
    path = folder / shard.name

    class Harm(Progress):
        def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
            if (stage, 3 * done) == ("training", total):  # the first epoch of three
                harm()

    def harm() -> None:
        if damage == "gone":
            path.unlink()
            return
        with path.open("r+b") as file:
            if damage == "cut":
                file.truncate(shard.num_bytes // 2)
                return
            for record in shard.samples:
                file.seek(record.offset + record.length // 2)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 1]))

    with pytest.raises(VerificationError, match=shard.name) as caught:
        train(tiny(epochs=3), paths.folder, shards=opened, progress=Harm())
    assert caught.value.exit_status == 3
    if damage == "flipped":
        assert any(f"(sample {key})" in str(caught.value) for key in shard.samples.keys)
    assert len(load_record(paths.record).epochs) <= 1  # no epoch was shorter


class Told(Progress):
    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, name: str, /, *_: object, **__: object) -> None:
        self.events.append(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_sample_is_named_with_its_step(
    value: float, opened: ShardFolder, tiny: Tiny, train: Train, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reader, row = opened.reader("train"), 33
    sample = reader.read(row)
    whole = torch.from_numpy(sample.crops[opened.crop_layout.names.index("full")].copy())
    real = SelectiveClassifier.logits

    def poisoned(model: SelectiveClassifier, images_BHWC: Tensor) -> Tensor:
        logits_BC = real(model, images_BHWC)
        is_hit_B = (images_BHWC == whole.permute(1, 2, 0)).flatten(1).all(1)
        return torch.where(is_hit_B[:, None], torch.tensor(value), logits_BC)

    monkeypatch.setattr(SelectiveClassifier, "logits", poisoned)
    options: dict[str, Any] = {"policy": "whole", "candidates": "full", "hflip": 0.0, "shift": 0}
    paths, told = RunPaths(folder=tmp_path / "run"), Told()
    with pytest.raises(DivergedError) as caught:
        train(tiny(epochs=2, **options), paths.folder, progress=told)
    key = reader.keys[row]
    assert f"must stay finite; got nan for {key} at step " in str(caught.value)
    assert json.loads(paths.diverged.read_text()) == {"keys": [key]}
    assert caught.value.exit_status == 1
    assert paths.last.exists() == bool(told.events)
