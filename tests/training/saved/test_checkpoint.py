import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline import ShardFolder
from pipeline.common.atomic_io import write_file
from pipeline.common.checksum import embed_sha256
from pipeline.common.errors import CheckpointError, ConfigError
from training.config import TrainConfig
from training.optim.schedule import make_scheduler
from training.saved.checkpoint import (
    DIGEST,
    CheckpointMeta,
    check_fits,
    load_optimizer,
    load_weights,
    pack_checkpoint,
    read_meta,
)
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
}
Stepped = tuple[nn.Module, Optimizer, LRScheduler]


def fresh(opt: str, config: TrainConfig, seed: int) -> Stepped:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    model.to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[opt](model.parameters())
    return model, optimizer, make_scheduler(optimizer, config, 10)


def take_steps(stepped: Stepped, count: int, seed: int) -> None:
    model, optimizer, scheduler = stepped
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.rand(4, 3, 8, 8, generator=generator)
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def meta_of(shards: ShardFolder, config: TrainConfig) -> CheckpointMeta:
    manifest = shards.manifest
    return CheckpointMeta(
        config=config, spec=manifest.spec, classes=manifest.classes, epoch=1, best_top1=12.5
    )


def save(path: Path, meta: CheckpointMeta, stepped: Stepped) -> None:
    model, optimizer, scheduler = stepped
    write_file(path, pack_checkpoint(meta, model=model, optimizer=optimizer, scheduler=scheduler))


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("sched", ["onecycle", "cosine", "step"])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(
    opt: str, sched: str, opened: ShardFolder, tmp_path: Path
) -> None:
    warmup = 0 if sched == "onecycle" else 1
    config = TrainConfig(policy="random", epochs=3, sched=sched, warmup_epochs=warmup, lr=0.01)
    meta = meta_of(opened, config)
    unbroken, resumed = fresh(opt, config, seed=1), fresh(opt, config, seed=2)
    take_steps(unbroken, 7, seed=3)
    save(tmp_path / "last.safetensors", meta, unbroken)

    assert read_meta(tmp_path / "last.safetensors") == meta
    load_optimizer(tmp_path / "last.safetensors", *resumed)
    load_weights(tmp_path / "last.safetensors", resumed[0])
    for seed in (4, 5):
        for name, value in unbroken[0].state_dict().items():
            assert torch.equal(resumed[0].state_dict()[name], value), name
        take_steps(unbroken, 7, seed=seed)
        take_steps(resumed, 7, seed=seed)


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(
    opened: ShardFolder, tmp_path: Path
) -> None:
    config, path = TrainConfig(), tmp_path / "last.safetensors"
    model, *_ = fresh("sgd", config, seed=1)
    data = pack_checkpoint(meta_of(opened, config), model=model)
    old = re.sub(
        rb"[0-9a-f]{64}", b"0" * 64, data.replace(b"srp-checkpoint/2", b"srp-checkpoint/1")
    )
    write_file(path, embed_sha256(old, DIGEST))
    with pytest.raises(CheckpointError) as caught:
        read_meta(path)
    assert str(caught.value) == (
        "a checkpoint must be of this version's format, srp-checkpoint/2; got srp-checkpoint/1 in "
        f"{path}. Train the run again, or use the version of srp that wrote it."
    )


def test_the_state_of_an_optimizer_has_the_names_of_its_weights(
    finished: tuple[RunPaths, RunRecord],
) -> None:
    with safe_open(finished[0].last, framework="np") as file:
        names = set(file.keys())
    weights = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    states = {name for name in names if name.startswith("optimizer.state.")}
    assert {name.removeprefix("optimizer.state.").rpartition(".")[0] for name in states} <= weights
    assert len(states) > 10


def test_an_optimizer_whose_state_is_no_numbers_is_refused_by_its_option(
    opened: ShardFolder,
) -> None:
    config = TrainConfig()
    model, optimizer, scheduler = stepped = fresh("sgd", config, seed=1)
    take_steps(stepped, 1, seed=1)
    optimizer.state[next(model.parameters())]["names"] = ["a"]
    with pytest.raises(ConfigError, match="--opt must have a state of tensors and numbers; got"):
        pack_checkpoint(
            meta_of(opened, config), model=model, optimizer=optimizer, scheduler=scheduler
        )


def test_nothing_in_a_checkpoint_is_pickled(finished: tuple[RunPaths, RunRecord]) -> None:
    data = finished[0].last.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert data[8:9] == b"{"
    assert 0 < header < len(data)
    assert b"ctorch" not in data
    assert b"PK\x03\x04" not in data[: header + 8]


def test_a_missing_checkpoint_says_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    with pytest.raises(CheckpointError) as caught:
        read_meta(path)
    assert str(caught.value) == (
        f"a run must have a checkpoint; got none at {path}. "
        "Name the folder of a run, such as runs/whole, or train one: srp-train from SHARDS"
    )


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_checkpoint_is_named(
    keep: int, finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(finished[0].last.read_bytes()[:keep])
    with pytest.raises(CheckpointError) as caught:
        read_meta(path)
    assert "a checkpoint must be a whole safetensors file that srp wrote; got" in str(caught.value)
    assert f"in {path}. Use the run's other checkpoint, or train again." in str(caught.value)


def test_a_safetensors_file_that_is_no_checkpoint_is_named(
    finished: tuple[RunPaths, RunRecord],
) -> None:
    with pytest.raises(CheckpointError, match="whole safetensors file that srp wrote"):
        read_meta(finished[0].logits)


def test_weights_of_another_model_are_refused(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder
) -> None:
    with pytest.raises(CheckpointError, match=r"Error\(s\) in loading state_dict"):
        load_weights(finished[0].last, nn.Linear(2, 2))


def test_shards_of_another_spec_are_refused_by_what_differs(opened: ShardFolder) -> None:
    meta, manifest = meta_of(opened, TrainConfig()), opened.manifest
    check_fits(meta, manifest, opened.place)
    smaller = replace(manifest.spec, canvas_size=40, crop_size=24)
    other = replace(manifest, spec=smaller, classes=("cat", "dog"))
    with pytest.raises(CheckpointError) as caught:
        check_fits(meta, other, Path("there"))
    assert str(caught.value) == (
        "shards must be of the spec that the run was trained on; got canvas_size 48 in training, "
        "40 here; crop_size 32 in training, 24 here; classes 10 (arrow, crescent, cross...) in "
        "training, 2 (cat, dog...) here in there. Build shards with the run's options, or train "
        "a run on these."
    )


def test_shards_of_another_layout_fit(opened: ShardFolder, scene_tensors: Path) -> None:
    check_fits(
        meta_of(opened, TrainConfig()), ShardFolder.open(scene_tensors).manifest, scene_tensors
    )


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace"])
def test_a_save_that_fails_leaves_the_one_before_it(
    broken: str, opened: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(policy="random", epochs=3)
    path, stepped = tmp_path / "last.safetensors", fresh("sgd", config, seed=1)
    meta = meta_of(opened, config)
    save(path, meta, stepped)
    before = path.read_bytes()
    take_steps(stepped, 3, seed=1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OSError, match="No space left"):
            save(path, replace(meta, epoch=2), stepped)
    assert path.read_bytes() == before
    assert read_meta(path).epoch == 1
    assert list(tmp_path.iterdir()) == [path]


def test_best_is_a_whole_checkpoint_of_the_best_epoch(
    finished: tuple[RunPaths, RunRecord], tmp_path: Path
) -> None:
    paths, record = finished
    best = read_meta(paths.best)
    accuracies = [epoch.val_top1 for epoch in record.epochs]
    assert accuracies[best.epoch - 1] == max(accuracies, key=lambda top1: top1 or 0.0)
    shutil.copyfile(paths.best, tmp_path / "copy.safetensors")
    assert read_meta(tmp_path / "copy.safetensors") == best
