from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.data.processes import Process
from training.model.classifier import uses_bfloat16
from training.run.state import build_model, build_state, glimpse_side
from training.run.train import train_step

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def test_equal_seeds_give_equal_weights(opened: ShardFolder, alone: Process, tiny: Tiny) -> None:
    first, again, other = (
        build_model(tiny(seed=seed), opened, alone).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_steps_and_schedule_follow_from_the_shards(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    state = build_state(tiny(epochs=3), opened, alone)
    assert state.steps == 70 // 16
    assert state.scheduler.state_dict()["total_steps"] == 3 * (70 // 16)
    assert state.wrapped is state.model
    assert state.glimpse_counterparts == (
        (0, 2, 1, 4, 3, 5), (0, 3, 4, 1, 2, 5), (0, 4, 3, 2, 1, 5),
    )  # fmt: skip
    by_map = build_state(tiny(proposer="map"), opened, alone)
    assert by_map.glimpse_counterparts == ((0,), (0,), (0,))


def test_weight_decay_spares_biases_and_norms(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    state = build_state(tiny(weight_decay=0.1), opened, alone)
    decays = {
        parameter.ndim >= 2: group["weight_decay"]
        for group in state.optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {True: 0.1, False: 0.0}


@pytest.mark.parametrize("sched", ["onecycle", "cosine", "step"])
def test_the_proposer_may_learn_at_a_rate_of_its_own(
    sched: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(sched=sched, lr=0.08, proposer_lr=0.02, weight_decay=0.1, epochs=2)
    state = build_state(config, opened, alone)
    assert state.model.proposer is not None
    proposer = {id(parameter) for parameter in state.model.proposer.parameters()}
    highest: dict[bool, float] = {}
    decays = set()
    for _ in range(2 * state.steps):
        for group in state.optimizer.param_groups:
            (is_proposer,) = {id(parameter) in proposer for parameter in group["params"]}
            highest[is_proposer] = max(highest.get(is_proposer, 0), group["lr"])
            decays.add((is_proposer, group["weight_decay"]))
        state.optimizer.step()
        state.scheduler.step()
    assert highest == pytest.approx({False: 0.08, True: 0.02}, rel=0.05)
    assert decays == {(False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)}


@pytest.mark.parametrize("opt", ["sgd", "adamw", "adagrad"])
def test_optimizers_take_their_names_from_timm(
    opt: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    state = build_state(tiny(opt=opt, lr=0.01), opened, alone)
    assert type(state.optimizer).__name__.lower() == opt
    assert state.optimizer.defaults.get("fused") == {"adagrad": None}.get(opt, True)


@pytest.mark.parametrize("proposer_lr", [None, 0.05])
@pytest.mark.parametrize("opt", ["muon", "nmuon", "adamuon"])
def test_muon_takes_the_matrices_between_the_ends_of_the_classifier(
    opt: str, proposer_lr: float | None, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(opt=opt, lr=0.02, proposer_lr=proposer_lr, weight_decay=0.1)
    state = build_state(config, opened, alone)
    train_step(state, next(iter(state.batches)), step=0)
    by_muon = {
        name
        for name, weight in state.model.named_parameters()
        if state.optimizer.state[weight]["use_muon"]
    }
    inner = {name for name in by_muon if name.startswith("classifier.layer")}
    convolutions = {
        name
        for name, weight in state.model.classifier.named_parameters(prefix="classifier")
        if weight.ndim == 4 and ".layer" in name
    }
    assert inner == convolutions
    assert not {name for name in by_muon if ".conv1.0." in name or ".fc." in name}
    assert all(dict(state.model.named_parameters())[name].ndim == 4 for name in by_muon)
    rates = {group["initial_lr"] for group in state.optimizer.param_groups}
    assert len(rates) == (1 if proposer_lr is None else 2)


def test_arguments_of_the_optimizer_reach_timm(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    words = ("nesterov=False", "dampening=0.5")
    plain, changed = (
        build_state(tiny(opt_kwargs=given), opened, alone).optimizer for given in ((), words)
    )
    assert changed.defaults == {**plain.defaults, "nesterov": False, "dampening": 0.5}
    assert changed.defaults["fused"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"opt": "sgdd"},
            "--opt must be a name that timm knows; got 'sgdd'. Try sgd, adamw or lamb. ",
        ),
        (
            {"momentum": 0.0, "sched": "cosine"},
            "--opt must work with the other options; got Nesterov momentum requires a momentum "
            "and zero dampening for 'sgd'. Change --momentum or --weight-decay, or try sgd, "
            "momentum or adamw.",
        ),
        (
            {"batch_size": 71},
            "a step must not need more images than there are; got --batch-size 71 on 1 processes "
            "for 70 images. Lower --batch-size.",
        ),
        (
            {"opt_kwargs": ("nesterof=True",)},
            "--opt-kwargs must be what sgd takes in timm; got nesterof=True, which ends in "
            "TypeError: SGD.__init__() got an unexpected keyword argument 'nesterof'. Correct it,",
        ),
        (
            {"opt": "muon", "opt_kwargs": ("ns_coefficients=best",)},
            "--opt-kwargs must be what muon takes in timm; got ns_coefficients=best, which ends in "
            "ValueError: ",
        ),
        (
            {"opt_kwargs": ("layer_decay=0.7", "lr=1")},
            "--opt-kwargs must leave groups of weights and what has an option of its own to srp; "
            "got layer_decay, lr. Leave it out.",
        ),
        ({"glimpse_size": 33}, "glimpse size must fit the crop; got --glimpse-size 33 px for "),
        (
            {"proposer_lr": 0.0},
            "--proposer-lr 0 keeps the proposer's weights, which must be trained ",
        ),
        ({"glimpse_size": 14}, "a glimpse must be large enough for the proposer; got "),
    ],
)
def test_a_config_that_does_not_fit_the_shards_is_refused(
    options: dict[str, Any], message: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_state(tiny(**options), opened, alone)
    assert str(caught.value).startswith(message)


def test_the_glimpse_is_the_shards_unless_asked_otherwise(opened: ShardFolder, tiny: Tiny) -> None:
    assert glimpse_side(tiny(), opened) == 16
    assert glimpse_side(tiny(glimpse_size=32), opened) == 32


@pytest.mark.parametrize(("policy", "looks"), [("blend", True), ("whole", False), ("mean", False)])
def test_glimpses_are_read_only_where_a_proposer_looks(
    policy: str, looks: bool, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(policy=policy)
    reader = build_model(config, opened, alone).reader(opened, "val", alone)
    (batch,) = reader.batches(np.arange(3)[None])
    assert (batch.glimpses_BLSS is not None) == looks


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)],
)
def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(
    capabilities: dict[str, bool], expected: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert uses_bfloat16(tiny(amp=True), CPU) == expected
    assert not uses_bfloat16(tiny(amp=False), CPU)
