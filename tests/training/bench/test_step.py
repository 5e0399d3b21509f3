"""What the bench of a step measures, on tiny shards: that its steps are real, and its words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch.utils.data import DataLoader

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.bench import plain
from training.bench import step as bench
from training.bench.config import StepBenchConfig
from training.bench.plain import ON_CROPS, ON_JPEGS, plain_loops
from training.data.processes import Process
from training.data.shards import Batch
from training.run.state import RunState, build_model
from training.run.train import train_step
from training.score.cost import count_macs

SrpTrain = Callable[..., Result]
TINY = {"model": "test_resnet", "batch_size": 16, "seconds": 0.01, "rounds": 2, "device": "cpu"}


def config(**options: Any) -> StepBenchConfig:
    return StepBenchConfig(**{**TINY, "workers": 1, "amp": False, **options})


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain loops read in this process: each of their own imports torch for seconds."""

    def loader(pictures: Any, *, batch_sampler: Any, **_: Any) -> DataLoader[Any]:
        return DataLoader(pictures, batch_sampler=batch_sampler)

    monkeypatch.setattr(plain, "DataLoader", loader)


@pytest.mark.usefixtures("no_processes")
def test_every_row_is_measured_and_compared(
    opened: ShardFolder, alone: Process, scenes: Path
) -> None:
    rows, setting = bench.bench_step(config(source=scenes), shards=opened, process=alone)
    by_name = {row.name: row for row in rows}
    for policy in ("whole", "distilled", "straight-through", "expected"):
        step, there = (by_name[f"{policy}: {name}"] for name in ("training step", bench.THERE))
        assert set(step.ratios) == {there.name, ON_JPEGS, ON_CROPS}
        assert step.figures["stall, %"] == pytest.approx(100 * (1 - step.ratios[there.name]))
        assert set(there.ratios) == {bench.CLASSIFIER}
    limit = by_name[bench.LIMIT]
    assert limit.median is not None
    flops = limit.median * 2 * bench.PASSES * setting["classifier_macs"]
    assert limit.figures["GFLOP/s"] == pytest.approx(flops / 1e9, rel=0.5)
    assert all(len(row.rates) == 2 for row in rows)
    assert setting["images"] == 70
    assert setting["computes_in"] == "float32"


@pytest.mark.usefixtures("no_processes")
def test_a_measured_step_is_the_training_step_on_the_runs_own_batches(
    opened: ShardFolder, alone: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def noted(state: RunState, batch: Batch, *, step: int) -> Any:
        seen.append((step, tuple(batch.indices_B.tolist())))
        before = [weights.clone() for weights in state.model.classifier.parameters()]
        output = train_step(state, batch, step=step)
        after = state.model.classifier.parameters()
        assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        return output

    monkeypatch.setattr(bench, "train_step", noted)
    bench.bench_step(config(policies=("whole",), rounds=1), shards=opened, process=alone)
    assert [step for step, _ in seen] == list(range(len(seen)))
    assert all(len(set(rows)) == 16 for _, rows in seen)


@pytest.mark.parametrize("has_processes", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_plain_loops_read_until_they_are_closed_and_again(
    has_processes: bool,
    opened: ShardFolder,
    alone: Process,
    scenes: Path,
    request: pytest.FixtureRequest,
) -> None:
    if not has_processes:
        request.getfixturevalue("no_processes")
    wanted = config(source=scenes)
    model = build_model(wanted.training("random"), opened, alone).train()
    with plain_loops(wanted, model, shards=opened, process=alone) as loops:
        assert list(loops) == [ON_JPEGS, ON_CROPS]
        for loop in loops.values():
            for _ in range(2):
                batches = loop.batches()
                for _, batch in zip(range(6), batches, strict=False):
                    assert batch.image_HWC.shape == (16, 32, 32, 3)
                    assert batch.image_HWC.dtype == torch.uint8
                    loop.step(batch)
                batches.close()


@pytest.mark.usefixtures("no_processes")
def test_the_command_prints_a_table_and_writes_its_figures(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    out = tmp_path / "step.json"
    options = [word for name, value in TINY.items() for word in (f"--{name}", value)]
    words = [str(word).replace("batch_size", "batch-size") for word in options]
    typed = ("bench", "step", scene_shards, *words, "--policy", "centre", "-o", out)
    result = srp_train(*typed)
    assert result.exit_code == 0, result.output
    assert "centre: training step" in result.stdout
    assert "stall, %" in result.stdout
    assert "machine: " in result.stderr
    figures = json.loads(out.read_text())
    assert figures["rows"][0]["name"] == "centre: training step"
    assert figures["setting"]["model"] == "test_resnet"
    assert "no GPU" in figures["setting"]["machine"]


def test_what_cannot_be_measured_is_refused_in_a_line(
    five_shards: Path, srp_train: SrpTrain
) -> None:
    result = srp_train("bench", "step", five_shards, "--model", "test_resnet", "--device", "cpu")
    assert result.exit_code == 2
    assert "--policy whole needs the crop 'full'" in result.stderr
    with pytest.raises(ConfigError, match=r"--seconds must be at least 0\.001; got 0"):
        config(seconds=0.0)


def test_the_limit_counts_three_passes(opened: ShardFolder, alone: Process) -> None:
    model = build_model(config().training("random"), opened, alone)
    macs = count_macs(model)[1]
    turn = bench._limit(config(), macs, alone).measure()
    assert turn.rate is not None
    assert turn.figures["GFLOP/s"] == pytest.approx(turn.rate * 6 * macs / 1e9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize("preload", ["none", "device"])
def test_a_gpu_is_measured(preload: str, opened: ShardFolder) -> None:
    process = Process(device=torch.device("cuda", 0))
    wanted = config(device="cuda", preload=preload, policies=("whole",), amp=True)
    rows, setting = bench.bench_step(wanted, shards=opened, process=process)
    assert all(row.median for row in rows)
    assert torch.cuda.get_device_name() in setting["machine"]
