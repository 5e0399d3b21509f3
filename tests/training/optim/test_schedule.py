import itertools
import json
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from training.config import TrainConfig
from training.optim.schedule import make_scheduler, temperature
from training.saved.checkpoint import _plain

STEPS = 10


def make(opt: str = "sgd", **options: Any) -> tuple[torch.optim.Optimizer, LRScheduler]:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    kinds = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=0.1),
    }
    optimizer = kinds[opt]()
    config = TrainConfig(lr=0.1, **{"policy": "random", "epochs": 4, **options})
    return optimizer, make_scheduler(optimizer, config, STEPS)


def rates(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, count: int) -> list[float]:
    """Step and list the rate that each step used."""
    used = []
    for _ in range(count):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return used


def test_onecycle_rises_to_the_rate_at_three_tenths_and_falls_to_nothing() -> None:
    used = rates(*make(), 40)
    assert used[0] == pytest.approx(0.1 / 25)
    assert used.index(max(used)) == 11
    assert max(used) == pytest.approx(0.1)
    assert used[-1] < 1e-5
    assert used[:12] == sorted(used[:12])
    assert used[11:] == sorted(used[11:], reverse=True)


def test_onecycle_works_for_an_optimizer_without_momentum_and_for_a_single_step() -> None:
    assert max(rates(*make("adagrad"), 40)) == pytest.approx(0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    config = TrainConfig(policy="random", epochs=1)
    assert len(rates(optimizer, make_scheduler(optimizer, config, 1), 1)) == 1


def test_cosine_starts_at_the_rate_and_ends_at_nothing() -> None:
    optimizer, scheduler = make(sched="cosine")
    used = rates(optimizer, scheduler, 40)
    assert used[0] == pytest.approx(0.1)
    assert used[20] == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_step_decays_by_its_rate_after_its_epochs() -> None:
    used = rates(*make(sched="step", decay_epochs=2, decay_rate=0.5), 40)
    assert used[:20] == pytest.approx([0.1] * 20)
    assert used[20:] == pytest.approx([0.05] * 20)


@pytest.mark.parametrize("sched", ["cosine", "step"])
def test_a_warm_up_is_linear_and_reaches_the_rate(sched: str) -> None:
    used = rates(*make(sched=sched, warmup_epochs=1), 11)
    assert used[0] == pytest.approx(0.001)
    gaps = [after - before for before, after in itertools.pairwise(used)]
    assert gaps == pytest.approx([gaps[0]] * 10)
    assert used[10] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sched": "cosine"},
        {"sched": "cosine", "warmup_epochs": 1},
        {"sched": "step", "decay_epochs": 1, "warmup_epochs": 2},
    ],
)
@pytest.mark.parametrize("stop", [3, 15, 25])
def test_a_schedule_goes_on_exactly_after_a_round_trip_through_json(
    options: dict[str, Any], stop: int
) -> None:
    unbroken = rates(*make(**options), 40)
    optimizer, scheduler = make(**options)
    rates(optimizer, scheduler, stop)
    states = json.dumps([optimizer.state_dict()["param_groups"], _plain(scheduler.state_dict())])
    resumed, resumed_scheduler = make(**options)
    groups, state = json.loads(states)
    resumed.load_state_dict({"state": {}, "param_groups": groups})
    resumed_scheduler.load_state_dict(state)
    assert rates(resumed, resumed_scheduler, 40 - stop) == unbroken[stop:]


def test_a_schedule_is_as_long_as_the_epochs_of_the_last_stage() -> None:
    used = rates(*make(policy="distilled", epochs=6, explore_epochs=2), 40)
    assert used == rates(*make(), 40)


def test_the_temperature_goes_geometrically_from_start_to_end() -> None:
    config = TrainConfig(policy="blend", tau_start=4.0, tau_end=0.25)
    at = [temperature(config, step=step, total_steps=5) for step in range(5)]
    assert at == pytest.approx([4, 2, 1, 0.5, 0.25])
    assert temperature(config, step=0, total_steps=1) == pytest.approx(4)
