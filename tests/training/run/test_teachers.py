"""A run that learns from the classifiers of other runs."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import ShardFolder
from pipeline.common.errors import CheckpointError, ConfigError
from training.choose.method import explored_config
from training.config import TrainConfig
from training.data.processes import Process
from training.data.shards import Batch
from training.model.classifier import SelectiveClassifier
from training.run.load import load_teachers
from training.run.state import build_model
from training.saved.checkpoint import load_initial
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record

Finished = tuple[RunPaths, RunRecord]
Train = Callable[..., RunRecord]
Tiny = Callable[..., TrainConfig]


def taught_model(config: TrainConfig, opened: ShardFolder, alone: Process) -> SelectiveClassifier:
    model = build_model(config, opened, alone).eval()
    model.teachers = load_teachers(config, opened, alone)
    return model


def losses(model: SelectiveClassifier, batch: Batch) -> torch.Tensor:
    images = batch.crops_BKHWC[:, 0]  # type: ignore[index]
    return model(images[:, None], None, batch.labels_B, torch.zeros(1), 1.0).losses_B


def test_a_classifier_that_equals_its_teacher_has_nothing_to_learn(
    tiny: Tiny, finished: Finished, opened: ShardFolder, alone: Process,
    make_batch: Callable[..., Batch],
) -> None:  # fmt: skip
    folder = str(finished[0].folder)
    config = tiny(policy="whole", kd_model=(folder,), distill_loss_weight=1.0)
    model, batch = taught_model(config, opened, alone), make_batch(6)
    assert (losses(model, batch) > 1e-3).all()
    load_initial(Path(folder), model)
    torch.testing.assert_close(losses(model, batch), torch.zeros(6), atol=1e-6, rtol=0)


def test_the_mean_of_the_teachers_probabilities_teaches_at_a_temperature(
    tiny: Tiny, finished: Finished, train: Train, opened: ShardFolder, alone: Process,
    make_batch: Callable[..., Batch], tmp_path: Path,
) -> None:  # fmt: skip
    train(tiny(policy="whole", seed=5), tmp_path / "other")
    runs = (str(finished[0].folder), str(tmp_path / "other"))
    config = tiny(
        policy="whole", kd_model=runs, kd_temperature=2.0, distill_loss_weight=0.25, smoothing=0.0
    )
    model, batch = taught_model(config, opened, alone), make_batch(6)
    images = batch.crops_BKHWC[:, 0]  # type: ignore[index]
    first, second = (each.logits(images) for each in model.teachers)
    assert not torch.equal(first, second)
    taught = ((first / 2).softmax(1) + (second / 2).softmax(1)) / 2
    own = model.logits(images)
    divergence = (taught * (taught.log() - (own / 2).log_softmax(1))).sum(1)
    right = own.log_softmax(1).gather(1, batch.labels_B[:, None])[:, 0]
    torch.testing.assert_close(losses(model, batch), 0.25 * 4 * divergence - 0.75 * right)


def test_teachers_are_neither_trained_nor_saved(
    tiny: Tiny, finished: Finished, train: Train, tmp_path: Path
) -> None:
    before = finished[0].last.read_bytes()
    options = {"policy": "random", "model_ema": True}
    for name, kd_model in (("with", (str(finished[0].folder),)), ("without", ())):
        train(tiny(kd_model=kd_model, **options), tmp_path / name)
    taught, alone = (
        load_file(tmp_path / name / "last.safetensors") for name in ("with", "without")
    )
    assert taught.keys() == alone.keys()
    name = next(name for name in alone if name.endswith("conv1.weight"))
    assert not torch.equal(taught[name], alone[name])
    assert finished[0].last.read_bytes() == before
    assert load_record(tmp_path / "with/record.json").teachers == (finished[1].last,)


def test_a_run_goes_on_with_the_teachers_that_it_began_with_alone(
    tiny: Tiny, finished: Finished, train: Train, tmp_path: Path
) -> None:
    teacher = RunPaths(folder=shutil.copytree(finished[0].folder, tmp_path / "teacher"))
    config = tiny(policy="whole", kd_model=(str(teacher.folder),))
    train(config, tmp_path / "run", scored=False)
    train(config, tmp_path / "run", scored=False, resume=True)
    other = tiny(policy="straight-through", seed=9)
    train(other, tmp_path / "other", scored=False)
    shutil.copyfile(tmp_path / "other/last.safetensors", teacher.last)
    with pytest.raises(ConfigError, match=r"got other weights of a --kd-model than those that it"):
        train(config, tmp_path / "run", resume=True)


def test_halves_learn_without_teachers_which_have_seen_what_they_judge() -> None:
    config = TrainConfig(kd_model=("runs/a",), kd_temperature=2.0, distill_loss_weight=0.3)
    for policy in ("distilled", "random"):
        explored = explored_config(replace(config, policy=policy))
        assert (explored.kd_model, explored.kd_temperature) == ((), TrainConfig.kd_temperature)
        replace(explored, fold=0)  # is no contradiction


def test_a_teacher_that_does_not_fit_is_refused(
    tiny: Tiny, finished: Finished, train: Train, opened: ShardFolder, small_shards: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    config = tiny(policy="whole", kd_model=(str(finished[0].folder),))
    few, small = replace(config, batch_size=2), ShardFolder.open(small_shards)
    with pytest.raises(
        ConfigError, match=r"crops of the same size; got 10 classes and crops of 32"
    ):
        train(few, tmp_path / "small", shards=small)
    with pytest.raises(ConfigError, match=r"--dev tunes on images that no teacher may have seen; "):
        train(replace(config, dev=True), tmp_path / "dev", shards=opened.with_dev())
    with pytest.raises(CheckpointError, match=r"a run must have a checkpoint; got none at .*gone"):
        train(replace(config, kd_model=(str(tmp_path / "gone"),)), tmp_path / "none")
    with pytest.raises(ConfigError, match=r"--fold leaves images out, which the teachers of"):
        replace(config, fold=1)
    with pytest.raises(ConfigError, match=r"--kd-temperature needs --kd-model; got none. Add "):
        TrainConfig(kd_temperature=2.0)
