from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.data.processes import Process
from training.optim.average import decay_at, move_average
from training.run import train as train_module
from training.run.load import load_model
from training.run.state import build_state
from training.run.train import train_step
from training.saved.folder import RunPaths
from training.saved.record import RunRecord
from training.score.classify import Validation, classify_crops

Train = Callable[..., RunRecord]
Tiny = Callable[..., TrainConfig]


def test_the_decay_is_timms() -> None:
    plain, warm = TrainConfig(model_ema=True), TrainConfig(model_ema=True, model_ema_warmup=True)
    assert [decay_at(plain, step) for step in (0, 1, 1000)] == [0.0, 0.99, 0.99]
    by_hand = [1 - n ** (-2 / 3) for n in (1, 2, 3)]
    assert [decay_at(warm, step) for step in range(3)] == pytest.approx(by_hand)
    assert decay_at(warm, 999) == pytest.approx(0.99)
    assert decay_at(warm, 100_000) == 0.99


def test_a_moved_average_is_the_formula_for_every_weight_and_norm() -> None:
    average, model = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    model(torch.rand(4, 3, 8, 8))
    before = {name: value.clone() for name, value in average.state_dict().items()}
    move_average(average.requires_grad_(False), model, decay=0.75)
    for name, value in model.state_dict().items():
        found = average.state_dict()[name]
        if value.is_floating_point():
            torch.testing.assert_close(found, 0.75 * before[name] + 0.25 * value)
        else:
            assert torch.equal(found, value), name
    move_average(average, model, decay=0.0)
    for name, value in model.state_dict().items():
        assert torch.equal(average.state_dict()[name], value), name


@pytest.mark.parametrize("policy", ["whole", "straight-through"])
def test_a_run_averages_its_steps_and_trains_as_without(
    policy: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(policy=policy, model_ema=True, model_ema_decay=0.5)
    state, plain = (build_state(c, opened, alone) for c in (config, tiny(policy=policy)))
    assert plain.scored is plain.model
    assert state.scored is state.average is not state.model
    expected: dict[str, torch.Tensor] = {}
    for step, (batch, _) in enumerate(zip(state.batches, plain.batches, strict=True)):
        train_step(state, batch, step=step)
        train_step(plain, batch, step=step)
        for name, value in state.model.state_dict().items():
            assert torch.equal(value, plain.model.state_dict()[name]), name
            is_moved = step and value.is_floating_point()
            expected[name] = 0.5 * expected[name] + 0.5 * value if is_moved else value.clone()
    for name, value in state.scored.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert not any(weight.requires_grad for weight in state.scored.parameters())


def test_the_average_is_what_is_scored_saved_and_loaded(
    opened: ShardFolder, alone: Process, tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    record = train(tiny(policy="random", epochs=2, model_ema=True), tmp_path)
    paths = RunPaths(folder=tmp_path)
    model = load_model(paths, opened, workers=1, process=alone)
    tensors = load_file(paths.last)
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[f"model.{name}"]), name
        assert f"raw.{name}" in tensors
    weight = "classifier.conv1.0.weight"
    assert not torch.equal(tensors[f"model.{weight}"], tensors[f"raw.{weight}"])
    assert record.evaluation is not None
    right_NK = classify_crops(model, opened, process=alone).right_NK
    assert record.evaluation.top1_crops == tuple((100 * right_NK.double().mean(0)).tolist())
    validated = [epoch.val_top1 for epoch in record.epochs]
    assert None not in validated


def test_validation_scores_the_average(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[bool] = []

    def note(model: nn.Module, *_: Any, **__: Any) -> Validation:
        scored.append(any(weight.requires_grad for weight in model.parameters()))
        return Validation(0.0, ())

    monkeypatch.setattr(train_module, "evaluate_choice", note)
    for is_kept in (True, False):
        train(tiny(policy="random", epochs=2, model_ema=is_kept), tmp_path / str(is_kept))
    assert scored == [False, True]


@pytest.mark.parametrize("field", ["model_ema_decay", "model_ema_warmup"])
def test_how_to_average_needs_an_average(field: str) -> None:
    flag = f"--{field.replace('_', '-')}"
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{field: 1})
    assert (
        str(caught.value) == f"{flag} needs --model-ema; got none. Add --model-ema, or drop {flag}."
    )
