"""The optional parts of a recipe: each is resumed bit for bit, also in a run of four stages."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline import ShardFolder
from pipeline.common.errors import PreemptedRunError
from training.choose import method
from training.config import TrainConfig
from training.data.processes import Process
from training.data.shards import Batch
from training.model.classifier import StepOutput
from training.run import train as train_module
from training.run.load import evaluate_run
from training.run.state import RunState
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

Tiny = Callable[..., TrainConfig]
RECIPES: dict[str, dict[str, Any]] = {
    "model-kwargs": {"model_kwargs": ("aa_layer=blurpool", "drop_path_rate=0.2")},
    "muon": {"opt": "muon", "lr": 0.01, "opt_kwargs": ("fallback_lr_scale=0.5", "momentum=0.95")},
    "model-ema": {"model_ema": True, "model_ema_warmup": True},
    "alternating-flip": {"alternating_flip": True},
    "start-size": {"start_size": 16},
}
SCALE = {"scale": (0.4, 1.0), "ratio": (0.8, 1.25), "scale_off_epochs": 1}
STEPPED = {"policy": "straight-through", "epochs": 2}
STAGED = {"policy": "distilled", "epochs": 4, "explore_epochs": 2, "fit_epochs": 1}
CASES = {
    **{
        f"{name}-{p['policy']}": p | recipe
        for name, recipe in RECIPES.items()
        for p in (STEPPED, STAGED)
    },
    "teachers-straight-through": STEPPED,
    "teachers-distilled": STAGED,
    "scale-whole": {"policy": "whole", "epochs": 3, **SCALE},
    "scale-centre": {"policy": "centre", "epochs": 3, **SCALE, "start_size": 24},
}


def stop_at(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, at_step: int) -> None:
    """Send this process a signal in a step of one of the run's trainings."""
    real = train_module.train_step

    def signalled(state: RunState, batch: Batch, *, step: int) -> StepOutput:
        if step == at_step and state.config.policy == config.policy:
            signal.raise_signal(signal.SIGTERM)
        return real(state, batch, step=step)

    monkeypatch.setattr(train_module, "train_step", signalled)


@pytest.mark.quick("teachers-distilled", *(case for case in CASES if "distilled" not in case))
@pytest.mark.parametrize("case", CASES)
def test_a_run_of_each_recipe_is_resumed_bit_for_bit_and_scored_again_alike(
    case: str, opened: ShardFolder, alone: Process, tiny: Tiny,
    finished: tuple[RunPaths, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = tiny(**CASES[case])
    if case.startswith("teachers"):
        config = replace(config, kd_model=(str(finished[0].folder),))

    def run(name: str, *, resume: bool = False) -> RunRecord:
        paths = RunPaths(folder=tmp_path / name)
        return method.train(config, shards=opened, paths=paths, process=alone, resume=resume)

    whole = run("whole")
    with monkeypatch.context() as patch:
        stop_at(patch, config, at_step=5)  # the second of the second epoch
        with pytest.raises(PreemptedRunError):
            run("broken")
    resumed = run("broken", resume=True)
    assert resumed.evaluation == whole.evaluation
    assert [e.train_loss for e in resumed.epochs] == [e.train_loss for e in whole.epochs]
    first, second = (
        load_file(tmp_path / name / "last.safetensors") for name in ("whole", "broken")
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    _, again = evaluate_run(
        RunPaths(folder=tmp_path / "whole"), shards_path=opened.place, candidates=None,
        checkpoint="last", workers=1, process=alone,
    )  # fmt: skip
    assert again == whole.evaluation


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_not_what_is_run_without_it(
    recipe: str, opened: ShardFolder, alone: Process, tiny: Tiny, tmp_path: Path
) -> None:
    figures = []
    for options in ({}, RECIPES[recipe]):
        paths = RunPaths(folder=tmp_path / str(len(figures)))
        config = tiny(policy="random", **options)
        record = method.train(config, shards=opened, paths=paths, process=alone)
        tensors = load_file(paths.last)
        figures.append((record.epochs[0].train_loss, tensors["model.classifier.fc.weight"]))
    assert not torch.equal(figures[0][1], figures[1][1])
