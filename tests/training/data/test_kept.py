from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.read.collate import BatchSpec
from training.config import TrainConfig
from training.data import kept
from training.data.kept import KeptSamples, place_of_samples
from training.data.processes import CPU, Process
from training.data.shards import BatchReader
from training.run.state import build_state
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

GIB = 2**30
CLOCK = {"seconds": 0.0, "images_per_s": 0.0, "waited_s": 0.0}  # fields of an epoch
PLACES = ["ram", pytest.param("device", marks=pytest.mark.sweep)]


def read(shards: ShardFolder, **options: Any) -> BatchReader:
    content = BatchSpec(**{"candidates": (0, 3), "glimpse_px": 16, "crops": False, **options})
    return BatchReader(shards.reader("train"), content, workers=2, device=CPU)


@pytest.mark.parametrize("options", [{}, {"crops": True}, {"glimpse_px": None}], ids=str)
def test_kept_batches_equal_those_of_the_shards(
    options: dict[str, Any], opened: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "READ_AT_ONCE", 16)
    rows = np.arange(1, 70, 2)
    wanted = [np.array(batch) for batch in ([69, 1, 33], [5], [1, 1, 67])]
    source = read(opened, **options)
    samples = KeptSamples(read(opened, **options), rows, device=CPU)
    for _ in range(2):
        for ours, theirs in zip(samples.batches(wanted), source.batches(wanted), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert (one is None) == (other is None)
                assert one is None or (torch.equal(one, other) and one.dtype == other.dtype)


def test_samples_are_read_once_and_not_before_the_first_batch(opened: ShardFolder) -> None:
    source = read(opened)
    samples = KeptSamples(source, np.arange(10), device=CPU)
    assert not source.reader._is_checked_N.any()
    next(samples.batches([np.arange(3)]))
    assert np.flatnonzero(source.reader._is_checked_N).tolist() == list(range(10))
    source.batches = None  # type: ignore[assignment,method-assign]
    assert len(next(samples.batches([np.arange(3)])).labels_B) == 3


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2},
        {"policy": "random", "fold": 0},
        pytest.param({"policy": "expected"}, marks=pytest.mark.sweep),
    ],
    ids=str,
)
def test_a_run_on_kept_samples_is_the_same_run(
    place: str,
    options: dict[str, Any],
    tiny: Callable[..., TrainConfig],
    train: Callable[..., RunRecord],
    tmp_path: Path,
) -> None:
    runs = [train(tiny(preload=each, **options), tmp_path / each) for each in ("none", place)]
    curves = [[replace(epoch, **CLOCK) for epoch in run.epochs] for run in runs]
    assert curves[0] == curves[1]
    assert runs[0].evaluation == runs[1].evaluation
    one, other = (load_file(RunPaths(folder=tmp_path / each).last) for each in ("none", place))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_run_goes_on_with_its_samples_elsewhere(
    tiny: Callable[..., TrainConfig], train: Callable[..., RunRecord], tmp_path: Path
) -> None:
    train(tiny(preload="ram"), tmp_path / "run", scored=False)
    record = train(tiny(preload="none"), tmp_path / "run", resume=True)
    assert record.evaluation is not None


def test_batches_do_not_ask_a_device_for_anything(
    opened: ShardFolder, tiny: Callable[..., TrainConfig]
) -> None:
    nowhere = torch.device("meta")  # it has no values, so asking for one is an error
    source = read(opened)
    samples = KeptSamples(source, np.arange(10), device=nowhere)
    batch = next(samples.batches([np.arange(3)]))
    assert (batch.labels_B.device, batch.indices_B.device) == (nowhere, CPU)


@pytest.mark.parametrize(
    ("preload", "num_bytes", "place"),
    [("none", GIB, None), ("auto", GIB, None), ("ram", GIB, CPU), ("device", GIB, CPU)],
)
def test_on_a_cpu_samples_are_kept_where_it_is_asked_for(
    preload: str, num_bytes: int, place: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "free_bytes", lambda: 2 * GIB)
    assert place_of_samples(preload, num_bytes, Process()) == place


def test_a_gpu_keeps_them_where_half_of_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_free_on", lambda _: 8 * GIB)
    process = Process(device=torch.device("cuda", 0))
    assert place_of_samples("auto", 4 * GIB, process) == process.device
    assert place_of_samples("auto", 5 * GIB, process) is None
    assert place_of_samples("device", 8 * GIB, process) == process.device
    with pytest.raises(ConfigError) as caught:
        place_of_samples("device", 9 * GIB, process)
    assert str(caught.value) == (
        "--preload device needs memory for all training pixels; got 8.0 GiB free on cuda for "
        "9.0 GiB. Use --preload none."
    )


def test_each_process_of_a_machine_needs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "free_bytes", lambda: 2 * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"2\.0 GiB free on cpu for 3\.0 GiB"):
        place_of_samples("ram", GIB, Process())


def test_what_does_not_fit_is_refused_in_a_line(
    scene_shards: Path,
    srp_train: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "free_bytes", lambda: 1)
    typed = ("from", scene_shards, "--policy", "whole", "--model", "test_resnet", "--device", "cpu")
    result = srp_train(*typed, "--preload", "ram", "--output", tmp_path)
    assert result.exit_code == 2
    assert "--preload ram needs memory for all training pixels" in result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preload", ["none", "device", "ram"])
def test_a_gpu_gets_the_same_batches(
    preload: str, opened: ShardFolder, tiny: Callable[..., TrainConfig]
) -> None:
    process = Process(device=torch.device("cuda", 0))
    on_gpu = build_state(tiny(preload=preload, device="cuda"), opened, process)
    on_cpu = build_state(tiny(preload="none"), opened, Process())
    for ours, theirs in zip(on_gpu.batches, on_cpu.batches, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one is None or torch.equal(one.cpu(), other)
