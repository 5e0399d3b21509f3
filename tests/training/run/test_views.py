from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process
from training.run import views
from training.run.state import RunState, build_state
from training.run.train import train_step

Tiny = Callable[..., TrainConfig]
SCALED = {"policy": "whole", "epochs": 4, "scale": (0.3, 0.8), "scale_off_epochs": 1}


def inputs_of(state: RunState, epochs: int) -> Iterator[Tensor]:
    """Give what the classifier sees in the first step of each epoch, `(B, 3, H, W)`."""
    seen: list[Tensor] = []
    state.model.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for epoch in range(epochs):
        batch = next(iter(state.batches))
        train_step(state, batch, step=epoch * state.steps)
        yield seen.pop()


def flips_of(state: RunState, step: int) -> Tensor:
    """Give which of all images a step mirrors."""
    batch = next(iter(state.batches))
    rows = torch.arange(70)
    whole = batch._replace(labels_B=rows, indices_B=rows)
    chance = views.draw(state, 70, torch.Generator().manual_seed(step), step=step)
    return views.alternated(state, whole, chance, step=step).draws.flips_B


def test_each_image_is_mirrored_in_every_other_epoch(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    state, other = (
        build_state(tiny(alternating_flip=True, seed=seed), opened, alone) for seed in (1, 2)
    )
    first = flips_of(state, 0)
    for step in range(4 * state.steps):
        is_odd = bool(step // state.steps % 2)
        assert torch.equal(flips_of(state, step), first ^ is_odd)
    assert 20 < first.sum() < 50
    assert not torch.equal(flips_of(other, 0), first)


def test_alternating_changes_the_mirrors_and_no_other_chance(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    options = {"vflip": 0.5, "shift": 3}
    draws = []
    for is_alternating in (False, True):
        state = build_state(tiny(alternating_flip=is_alternating, **options), opened, alone)
        batch = next(iter(state.batches))
        chance = views.draw(state, 16, torch.Generator().manual_seed(5), step=0)
        draws.append(views.alternated(state, batch, chance, step=0).draws)
    assert torch.equal(draws[0].vflips_B, draws[1].vflips_B)
    assert torch.equal(draws[0].shifts_B2, draws[1].shifts_B2)
    assert not torch.equal(draws[0].flips_B, draws[1].flips_B)


def test_windows_are_shown_until_the_last_epochs_which_are_as_without(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    options = {"policy": "whole", "epochs": 4, "lr": 0.0}
    states = [build_state(tiny(**{**options, **more}), opened, alone) for more in ({}, SCALED)]
    plain, scaled = (list(inputs_of(state, 4)) for state in states)
    same = [torch.equal(*pair) for pair in zip(plain, scaled, strict=True)]
    assert same == [False, False, False, True]
    assert all(shown.shape == plain[0].shape for shown in scaled)
    assert all(shown.is_contiguous(memory_format=torch.channels_last) for shown in scaled)


def test_a_window_of_the_whole_canvas_is_the_canvas_resized_and_mirrored(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(policy="whole", scale=(1.0, 1.0), hflip=0.0)
    state = build_state(config, opened, alone)
    batch = next(iter(state.batches))
    chance = views.draw(state, 16, torch.Generator().manual_seed(1), step=0)
    _, *still = augment.Draws.none(16)
    upright, turned = (
        views.view(
            state,
            batch,
            chance._replace(draws=augment.Draws(torch.full((16,), flipped), *still)),
            None,
            step=0,
        )
        for flipped in (False, True)
    )
    torch.testing.assert_close(turned, upright.flip(3), atol=1e-3, rtol=0)
    near = augment.cut(batch, opened.crop_layout, opened.crop_layout.indices("full")).float()
    assert (upright - near).abs().mean() < 6  # that is resized from the image itself


def test_the_input_grows_to_the_crop_and_ends_there(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(policy="straight-through", epochs=12, start_size=16)
    sides = [shown.shape[2] for shown in inputs_of(build_state(config, opened, alone), 12)]
    assert sides == [16, 16, 16, 24, 24, 24, 32, 32, 32, 32, 32, 32]


@pytest.mark.parametrize("policy", ["random", "expected", "blend", "mean"])
def test_every_policy_takes_a_smaller_input(
    policy: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    state = build_state(tiny(policy=policy, start_size=16, epochs=4), opened, alone)
    (shown,) = islice(inputs_of(state, 1), 1)
    assert shown.shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_size": 32}, "--start-size must be below the crop's side; got 32 px for crops of"),
        (
            {"model": "test_vit", "start_size": 16},
            "--model must take images of the crop's size; got ",
        ),
    ],
)
def test_an_input_that_cannot_grow_is_refused(
    options: dict[str, Any], message: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_state(tiny(policy="whole", **options), opened, alone)
    assert str(caught.value).startswith(message)


def test_windows_need_canvases(scene_tensors: Path, alone: Process, tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as caught:
        build_state(tiny(**SCALED), ShardFolder.open(scene_tensors), alone)
    assert str(caught.value).startswith("--scale takes windows of canvases; got --layout tensors ")
    assert str(caught.value).endswith("Build shards with --layout canvas, or drop --scale.")


def test_mirrors_are_alternating_or_drawn() -> None:
    with pytest.raises(ConfigError, match=r"--alternating-flip mirrors .* got --hflip 0.3. Drop"):
        TrainConfig(alternating_flip=True, hflip=0.3)
