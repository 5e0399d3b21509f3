import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from pipeline import ShardFolder
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process
from training.optim import optimizer as optimizer_module
from training.run.state import RunState, build_state
from training.run.train import train_step
from training.score.choices import mirrored_choices

Tiny = Callable[..., TrainConfig]
VARIANTS: list[dict[str, Any]] = [
    {"policy": "whole"},
    {"policy": "random"},
    {"vflip": 0.5, "clip_grad": 1.0},
    {"proposer": "map", "position_prior": True},
    {"random_epochs": 1, "epochs": 2},
    {"policy": "blend", "proposer": "joint"},
    {"policy": "expected"},
    {"policy": "whole", "scale": (0.3, 1.0), "model_ema": True},
    {"policy": "random", "alternating_flip": True, "start_size": 16, "epochs": 4},
    {"policy": "expected", "num_draws": 2},
    {"proposer_lr": 0.0, "initial_checkpoint": "there"},  # its choices are known before
]


def state_on(device: torch.device, config: TrainConfig, shards: ShardFolder) -> RunState:
    state = build_state(config, shards, Process(device=device))
    if not config.chooses_ahead:
        return state
    model = build_state(config, shards, Process()).model
    return replace(state, choices_NWK=mirrored_choices(model, shards, Process(), num_ways=2))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_step_asks_its_device_for_nothing(
    options: dict[str, Any], opened: ShardFolder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = torch.device("meta")  # it has no values, so asking for one is an error
    monkeypatch.setattr(optimizer_module, "FUSED", ())  # torch fuses nothing there
    state = state_on(nowhere, tiny(**options), opened)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    for step, batch in enumerate(islice(state.batches, 2)):
        assert (batch.labels_B.device, batch.indices_B.device.type) == (nowhere, "cpu")
        assert train_step(state, batch, step=step).loss.device == nowhere


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_step_does_not_wait_for_the_gpu(
    options: dict[str, Any], opened: ShardFolder, tiny: Tiny
) -> None:
    state = state_on(torch.device("cuda", 0), tiny(device="cuda", **options), opened)
    for step, batch in enumerate(islice(state.batches, 3)):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one prepares
        try:
            train_step(state, batch, step=step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_wanted", [1, 6])
def test_a_gpu_cuts_what_the_cpu_cuts(num_wanted: int, opened: ShardFolder, tiny: Tiny) -> None:
    generator = torch.Generator().manual_seed(1)
    draws = augment.draw(16, hflip=0.5, vflip=0.5, shift=9, generator=generator)
    wanted_BM = torch.randint(0, 6, (16, num_wanted), generator=generator)
    state = build_state(tiny(), opened, Process())
    batch = next(iter(state.batches))
    on_cpu, on_gpu = (
        augment.cut(
            batch.to(torch.device(name)), opened.crop_layout, state.model.candidates, draws=draws,
            wanted_BM=wanted_BM,
        ).cpu()
        for name in ("cpu", "cuda")
    )  # fmt: skip
    assert torch.equal(on_cpu, on_gpu)
