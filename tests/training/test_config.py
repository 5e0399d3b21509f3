import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import training
from pipeline.command.options_file import read_options
from pipeline.command.settings import named_values
from pipeline.common.errors import ConfigError
from training.audit.config import HeadroomConfig
from training.config import TrainConfig
from training.model.policies import POLICIES, policies_using
from training.optim.schedules import SCHEDULES
from training.saved.folder import RunPaths
from training.saved.record import config_from_json

RECIPES = Path(training.__file__).parent / "recipes"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "policy",
            "best",
            "--policy must be one of blend, straight-through, expected, distilled, whole,",
        ),
        ("sched", "linear", "--sched must be one of onecycle, cosine, step; got 'linear'."),
        ("device", "tpu", "--device must be one of auto, cpu, cuda; got 'tpu'."),
        ("glimpse_size", 0, "--glimpse-size must be at least 1; got 0."),
        ("proposer_channels", (), "--proposer-channels must be at least 1; got 0."),
        ("proposer_channels", (8, 0), "--proposer-channels must be at least 1; got 0."),
        ("tau_end", 0.0, "--tau-end must be at least 0.001; got 0.0."),
        ("balance", -0.1, "--balance must be at least 0; got -0.1."),
        ("epochs", 0, "--epochs must be at least 1; got 0."),
        ("batch_size", 0, "--batch-size must be at least 2; got 0."),
        ("lr", -1.0, "--lr must be at least 0; got -1.0."),
        ("lr", float("nan"), "--lr must be at least 0; got nan."),
        ("clip_grad", 0.0, "--clip-grad must be at least 1e-09; got 0.0."),
        ("seed", -1, "--seed must be at least 0; got -1."),
        ("workers", 0, "--workers must be at least 1; got 0."),
        ("hflip", 1.1, "--hflip must be at most 1; got 1.1."),
        ("smoothing", float("nan"), "--smoothing must be at least 0; got nan."),
        ("num_draws", 1, "--num-draws must be 0 (exact) or at least 2, "),
        ("random_epochs", 20, "--random-epochs must be fewer than --epochs, or no choice is "),
        ("std", (1.0, 0.0, 1.0), "--std must be at least 0.001; got 0.0."),
        ("std", (1.0, 1.0, math.inf), "--std must be at most 1000; got inf."),
        ("mean", (0.5, math.nan, 0.5), "--mean must be at least 0; got nan."),
        ("mean", (124.0, 116.0, 104.0), "--mean must be at most 1; got 124.0."),
        ("lr", math.inf, "--lr must be at most 1000; got inf."),
        ("weight_decay", math.inf, "--weight-decay must be at most 1000; got inf."),
        ("tau_start", math.inf, "--tau-start must be at most 1000; got inf."),
        ("momentum", 1.5, "--momentum must be at most 1; got 1.5."),
        ("epochs", 10**18, f"--epochs must be at most 1000000; got {10**18}."),
        ("batch_size", 10**18, f"--batch-size must be at most 1000000; got {10**18}."),
        ("seed", 10**30, f"--seed must be at most {2**32 - 1}; got {10**30}."),
        ("model_kwargs", ("deep",), "--model-kwargs must be NAME=VALUE, and each name once; got "),
        ("scale", (0.5, 0.4), "--scale must be MIN,MAX; got 0.5,0.4. Turn them round."),
        ("scale", (0.0, 1.0), "--scale must be at least 0.001; got 0.0."),
        ("ratio", (2.0, 1.0), "--ratio must be MIN,MAX; got 2.0,1.0. Turn them round."),
        ("scale_off_epochs", 20, "--scale-off-epochs must be fewer than --epochs, or no window "),
        ("start_size", 7, "--start-size must be at least 8; got 7."),
        ("opt_kwargs", ("=1",), "--opt-kwargs must be NAME=VALUE, and each name once; got '=1'. "),
        ("model_kwargs", ("a=1", "a=2"), "--model-kwargs must be NAME=VALUE, and each name once;"),
        ("workers", 10**9, "--workers must be at most 1024; got 1000000000."),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_option(
    option: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{"policy": "expected", option: value})
    assert str(caught.value).startswith(message)


OTHER = {
    "proposer": "map",
    "position_prior": True,
    "glimpse_size": 32,
    "pad_glimpses": True,
    "proposer_channels": (4, 8),
    "proposer_lr": 0.2,
    "balance": 0.1,
    "random_epochs": 1,
    "tau_start": 2.0,
    "tau_end": 0.7,
    "num_draws": 2,
    "explore_epochs": 3,
    "judge_mirrors": True,
    "fit_epochs": 7,
    "scale": (0.5, 1.0),
    "ratio": (0.5, 2.0),
    "scale_off_epochs": 2,
}


@pytest.mark.parametrize("field", OTHER)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_policy_would_ignore_is_refused_with_the_policies_that_use_it(
    policy: str, field: str
) -> None:
    assert getattr(TrainConfig(), field) != OTHER[field]
    if policy in policies_using(field):
        kind: dict[str, Any] = {"proposer": "crops"} if field == "pad_glimpses" else {}
        kind |= {"scale": (0.5, 1.0)} if field in ("ratio", "scale_off_epochs") else {}
        config = TrainConfig(**{"policy": policy, **kind, field: OTHER[field]})
        assert getattr(config, field) == OTHER[field]
        return
    with pytest.raises(ConfigError) as caught:
        TrainConfig(policy=policy, **{field: OTHER[field]})
    option = f"--{field.replace('_', '-')}"
    known = {
        "num_draws": "expected",
        **dict.fromkeys(("scale", "ratio", "scale_off_epochs"), "whole or centre"),
        "explore_epochs": "distilled",
        "judge_mirrors": "distilled",
        "fit_epochs": "distilled",
        "tau_start": "blend or straight-through",
        "tau_end": "blend or straight-through",
        "random_epochs": "blend, straight-through or expected",
    }.get(field, "blend, straight-through, expected or distilled")
    assert str(caught.value) == (
        f"{option} needs --policy {known}; got --policy {policy}. Drop {option}, or change "
        "--policy."
    )


def test_an_option_of_the_table_is_a_field_and_its_policies_are_known() -> None:
    listed = {option for policy in POLICIES.values() for option in policy.options}
    assert listed == OTHER.keys() <= vars(TrainConfig()).keys()
    for option in listed:
        assert 0 < len(policies_using(option)) < len(POLICIES)
    assert policies_using("lr") == tuple(POLICIES)


SCHEDULED = {"momentum": 0.8, "warmup_epochs": 1, "decay_epochs": 5, "decay_rate": 0.5}


@pytest.mark.parametrize("field", SCHEDULED)
@pytest.mark.parametrize("sched", SCHEDULES)
def test_what_a_schedule_would_ignore_is_refused_with_the_schedules_that_use_it(
    sched: str, field: str
) -> None:
    value, option = SCHEDULED[field], f"--{field.replace('_', '-')}"
    if field in SCHEDULES[sched]:
        assert getattr(TrainConfig(sched=sched, **{field: value}), field) == value
        return
    with pytest.raises(ConfigError) as caught:
        TrainConfig(sched=sched, **{field: value})
    known = "cosine or step" if field in SCHEDULES["cosine"] else "step"
    assert str(caught.value) == (
        f"{option} needs --sched {known}; got --sched {sched}. Drop {option}, or change --sched."
    )
    read = config_from_json({"sched": sched, field: value})  # was once recorded
    assert getattr(read, field) == getattr(TrainConfig, field)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_recorded_and_decided_nothing_is_left_out_on_reading(policy: str) -> None:
    written = {**dataclasses.asdict(TrainConfig(lr=0.3)), "policy": policy, **OTHER}
    for field, other in OTHER.items():
        found = config_from_json(json.loads(json.dumps({**written, "pad_glimpses": False})))
        is_used = policy in policies_using(field) and field != "pad_glimpses"
        assert getattr(found, field) == (other if is_used else getattr(TrainConfig(), field))
        assert (found.policy, found.lr) == (policy, 0.3)


NUMBERS = sorted(
    field.name
    for field in dataclasses.fields(TrainConfig)
    if "float" in str(field.type) or "int" in str(field.type)
)


@pytest.mark.parametrize("value", [10**30, -(10**30), math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_without_bounds_is_taken(name: str, value: float) -> None:
    count = {"mean": 3, "std": 3, "proposer_channels": 1}.get(name)
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: count * (value,) if count else value})
    option = f"--{name.replace('_', '-')}"
    assert re.fullmatch(rf"{option} must be .*; got \(?{value}.*\.", str(caught.value))


def test_the_largest_seed_works_and_an_estimate_has_one_more() -> None:
    assert TrainConfig(seed=2**32 - 1).seed == 2**32 - 1
    assert torch.Generator().manual_seed(2**32 - 1)
    with pytest.raises(ConfigError, match=f"--seed must be at most {2**32 - 2}; got {2**32 - 1}"):
        HeadroomConfig(seed=2**32 - 1)
    with pytest.raises(ConfigError, match="--limit must be at most 1000000000; got 10000000000"):
        HeadroomConfig(limit=10**10)


def test_a_config_survives_json_with_its_tuples() -> None:
    config = TrainConfig(
        policy="blend", proposer_channels=(4, 8), mean=(0.1, 0.2, 0.3), lr=0.3,
        model_kwargs=("stem_type=deep", "avg_down=1"),
    )  # fmt: skip
    assert config_from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_values_are_literals_of_python_or_else_texts() -> None:
    words = ("a=1", "b=0.5", "c=True", "d=deep", "e=(1, 2)", "f=", "g=x=y", "h='1'", "i=1e-3")
    assert named_values("--model-kwargs", words) == {
        "a": 1, "b": 0.5, "c": True, "d": "deep", "e": (1, 2), "f": "", "g": "x=y", "h": "1",
        "i": 1e-3,
    }  # fmt: skip


def test_a_config_of_another_version_is_refused_with_the_field_it_lacks_a_name_for() -> None:
    with pytest.raises(ConfigError, match=r"must fit this version of srp; got .*'colour'"):
        config_from_json({"colour": 3})


def test_exactly_the_policies_with_a_proposer_select() -> None:
    assert {policy for policy in POLICIES if TrainConfig(policy=policy).selects} == {
        "blend",
        "straight-through",
        "expected",
        "distilled",
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_the_short_recipe_is_for_every_policy(policy: str) -> None:
    recipe = read_options(RECIPES / "short.toml", TrainConfig)
    assert TrainConfig(policy=policy, **recipe).opt == "muon"


def test_the_long_recipe_ends_on_what_is_evaluated() -> None:
    recipe = TrainConfig(policy="whole", **read_options(RECIPES / "long.toml", TrainConfig))
    assert 0 < recipe.scale_off_epochs < recipe.epochs


def test_every_file_of_a_run_lies_in_its_folder(tmp_path: Any) -> None:
    paths = RunPaths(folder=tmp_path / "run")
    files = {paths.record, paths.last, paths.best, paths.logits}
    assert len(files) == 4
    assert {file.parent for file in files} == {paths.folder}
