import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.choose.method import train as train_stages
from training.config import TrainConfig
from training.data.processes import Process
from training.saved.folder import RunPaths
from training.saved.record import RunRecord
from training.study.dry_run import plan_run

Tiny = Callable[..., TrainConfig]


def test_a_plan_has_the_stages_and_steps_that_the_run_takes(
    tiny: Tiny, opened: ShardFolder, alone: Process, tmp_path: Path
) -> None:
    config = tiny(policy="distilled", epochs=2, fit_epochs=3, batch_size=8)
    paths = RunPaths(folder=tmp_path / "run")
    plan = plan_run(config, shards=opened, paths=paths, process=alone)
    assert not list(tmp_path.iterdir())
    record = train_stages(config, shards=opened, paths=paths, process=alone)
    by_name = {stage.name: stage for stage in plan.stages}
    assert list(by_name) == [
        "explore, half 1 of 2", "explore, half 2 of 2", "judge, half 1 of 2", "judge, half 2 of 2",
        "fit", "exploit", "scoring every crop", "validating",
    ]  # fmt: skip
    halves, fit = (next(s for s in record.stages if s.name == name) for name in ("explore", "fit"))
    for name, curve in (
        ("explore, half 1 of 2", halves.curves[0]),
        ("explore, half 2 of 2", halves.curves[1]),
        ("exploit", record.epochs),
    ):
        images = round(sum(epoch.images_per_s * epoch.seconds for epoch in curve))
        assert (by_name[name].epochs, by_name[name].steps) == (len(curve), images // 8)
    assert by_name["fit"].epochs == len(fit.errors)
    assert record.evaluation is not None
    assert plan.proposer_macs == record.evaluation.proposer_macs
    assert plan.classifier_macs == record.evaluation.classifier_macs
    assert plan.seconds > 0


@pytest.mark.parametrize("policy", ["whole", "mean", "straight-through", "expected"])
def test_a_policy_without_stages_is_planned_by_its_own_steps(
    policy: str, tiny: Tiny, opened: ShardFolder, alone: Process, tmp_path: Path
) -> None:
    plan = plan_run(
        tiny(policy=policy, epochs=3), shards=opened, paths=RunPaths(folder=tmp_path / "run"),
        process=alone,
    )  # fmt: skip
    training = plan.stages[0]
    assert (training.name, training.epochs, training.steps) == ("training", 3, 12)
    assert training.seconds == pytest.approx(3 * 70 / plan.images_per_s)
    validating = plan.stages[-1]
    assert validating.images == 2 * 29 * (6 if policy == "mean" else 1) / 4
    assert (plan.num_train, plan.num_val, plan.num_measured) == (70, 29, 2)


def test_memory_is_counted_by_its_parts(
    tiny: Tiny, opened: ShardFolder, alone: Process, tmp_path: Path
) -> None:
    def memory(**options: object) -> dict[str, int]:
        config = replace(tiny(policy="whole", opt="sgd"), **options)  # type: ignore[arg-type]
        paths = RunPaths(folder=tmp_path / "run")
        return dict(plan_run(config, shards=opened, paths=paths, process=alone).memory)

    plain = memory()
    assert plain["gradients"] == plain["optimizer"]  # one momentum a weight
    assert memory(opt="adamw")["optimizer"] >= 2 * plain["optimizer"]
    assert memory(model_ema=True)["weights"] == 2 * plain["weights"]
    larger = memory(batch_size=32)["forward pass, for the backward pass"]
    assert larger == pytest.approx(2 * plain["forward pass, for the backward pass"], rel=0.1)
    assert memory(preload="ram")["training pixels, kept on cpu"] == 70 * 3 * 48**2 + 70 * 3 * 32**2


def test_what_a_run_would_refuse_is_refused(
    tiny: Tiny, opened: ShardFolder, alone: Process, finished: tuple[RunPaths, RunRecord],
    tmp_path: Path,
) -> None:  # fmt: skip
    def plan(config: TrainConfig, folder: Path) -> None:
        plan_run(config, shards=opened, paths=RunPaths(folder=folder), process=alone)

    with pytest.raises(ConfigError, match="a run must not be overwritten"):
        plan(finished[1].config, finished[0].folder)
    with pytest.raises(ConfigError, match="--explore-epochs must be fewer than --epochs"):
        plan(tiny(policy="distilled", epochs=2, explore_epochs=2), tmp_path / "run")


def test_the_command_prints_a_plan_for_people_or_programs_and_writes_nothing(
    scene_shards: Path, srp_train: Callable[..., Result], tmp_path: Path
) -> None:
    words = ("from", scene_shards, "--output", tmp_path / "runs", "--dry-run", "--epochs", 2)
    quick = ("--model", "test_resnet", "-b", 16, "--policy", "centre", "--device", "cpu")
    shown = srp_train(*words, *quick)
    assert shown.exit_code == 0, shown.output
    for part in ("Nothing was written.", "million MACs", "memory beside the libraries", "about "):
        assert part in shown.stdout
    told = json.loads(srp_train(*words, *quick, "--json").stdout)
    assert told["run"] == str(tmp_path / "runs/centre-s42")
    assert told["seconds"] == pytest.approx(sum(stage["seconds"] for stage in told["stages"]))
    assert told["peak_bytes"] == sum(told["memory"].values())
    assert told["shard_bytes"]["val"] > 0
    assert not list(tmp_path.iterdir())
