from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.data.processes import CPU, Process
from training.model.compiled import check_compiler
from training.run.load import load_model
from training.run.state import build_model, build_state
from training.run.train import train_step
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

Tiny = Callable[..., TrainConfig]


def test_compiling_changes_no_name_of_a_weight(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    plain, other = (
        build_model(tiny(torchcompile=backend), opened, alone) for backend in (None, "eager")
    )
    assert list(plain.state_dict()) == list(other.state_dict())


def test_training_alone_is_compiled(opened: ShardFolder, tiny: Tiny) -> None:
    seen: list[bool] = []

    def noted(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        seen.append(torch.is_grad_enabled())
        return graph.forward

    torch.compiler.reset()
    torch._dynamo.register_backend(noted, name="noted")
    config = tiny(torchcompile="noted", policy="centre")
    state = build_state(config, opened, Process())
    plain = build_state(tiny(policy="centre"), opened, Process())
    crop_HWC = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(state.model.eval().logits(crop_HWC), plain.model.eval().logits(crop_HWC))
    assert not seen
    for model in (state.model, plain.model):
        model.train()
    for step, (ours, theirs) in enumerate(zip(state.batches, plain.batches, strict=True)):
        one, other = train_step(state, ours, step=step), train_step(plain, theirs, step=step)
        torch.testing.assert_close(one.loss, other.loss)
    assert seen == [True]


def test_a_compiled_run_is_scored_where_nothing_compiles(
    opened: ShardFolder,
    alone: Process,
    tiny: Tiny,
    train: Callable[..., RunRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = RunPaths(folder=tmp_path / "run")
    record = train(tiny(torchcompile="eager", policy="centre"), paths.folder)
    assert record.config.torchcompile == "eager"
    monkeypatch.setattr("training.model.compiled.shutil.which", lambda _: None)
    model = load_model(paths, opened, workers=1, process=alone)
    assert model.config.torchcompile == "eager"


@pytest.mark.parametrize(
    ("backend", "place", "said"),
    [
        ("gcc", "cpu", "must name a backend of torch, such as cudagraphs, inductor"),
        ("inductor", "cpu", "needs a C++ compiler on a CPU; got none named cc-of-mine. Install"),
        ("inductor", "cuda", "needs the package triton on a GPU; got none. Install it with: pip"),
    ],
)
def test_what_cannot_compile_is_refused(
    backend: str, place: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "cc-of-mine")
    monkeypatch.setattr("training.model.compiled.find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        check_compiler(backend, torch.device(place))
    assert f"--torchcompile {said}" in str(caught.value)
    check_compiler(None, CPU)
    check_compiler("eager", CPU)


def test_the_option_needs_no_value(
    scene_shards: Path, srp_train: Callable[..., Result], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CXX", "cc-of-mine")
    typed = ("from", scene_shards, "--policy", "whole", "--model", "test_resnet", "--device", "cpu")
    result = srp_train(*typed, "--output", tmp_path, "--torchcompile")
    assert result.exit_code == 2
    assert "--torchcompile needs a C++ compiler on a CPU; got none" in result.stderr
