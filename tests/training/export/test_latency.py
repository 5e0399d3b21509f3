"""What one image costs, beside what the choice replaces."""

import numpy as np
import pytest
import torch

from pipeline.common.progress import SILENT
from training.bench.config import LatencyBenchConfig
from training.export import latency
from training.export.check import Answers
from training.export.latency import bench_latency
from training.predict.load import LoadedRun


def test_rows_name_what_is_replaced_with_its_macs(
    loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(graph: torch.nn.Module, *, threads: int) -> object:
        def run(image: np.ndarray) -> Answers:
            with torch.inference_mode():
                return Answers(*(each.numpy() for each in graph(torch.from_numpy(image))))

        return run

    monkeypatch.setattr(latency, "trace", lambda graph: graph.eval())
    monkeypatch.setattr(latency, "pack_onnx", lambda graph, description: graph)
    monkeypatch.setattr(latency, "onnx_runner", runner)
    config = LatencyBenchConfig(seconds=0.001, rounds=1)
    rows, setting = bench_latency(config, run=loaded, progress=SILENT)
    assert [row.name for row in rows] == ["the chosen crop", "the whole image", "all 6 crops"]
    chosen, whole, every = (row.figures["MMACs"] for row in rows)
    assert every == pytest.approx(6 * whole)
    assert whole < chosen < 2 * whole
    assert all(row.median and row.figures["ms"] for row in rows)
    assert setting["batch"] == 1
