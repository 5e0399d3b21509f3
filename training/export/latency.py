"""How long one photograph takes on a CPU: the exported graph, beside what it replaces."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import CropLayout
from pipeline.command.results import Contender, Row, Turn, interleave
from pipeline.common.progress import Progress
from training.bench.config import LatencyBenchConfig
from training.export.graph import ChoiceGraph, cut_candidates, resize, trace
from training.export.onnx_file import onnx_runner, pack_onnx
from training.model.classifier import SelectiveClassifier
from training.predict.load import LoadedRun
from training.score.cost import count_macs

PHOTO = (1, 375, 500, 3)  # the usual size of a photograph of ImageNet, px
CHOSEN = "the chosen crop"
MEGA = 1e6


class _WholeImage(nn.Module):
    """Classifies the whole image at the crop's size, so at the MACs of one crop."""

    def __init__(self, model: SelectiveClassifier, layout: CropLayout) -> None:
        super().__init__()
        self.model, self.side = model, layout.crop_px

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole_BChh = resize(images.permute(0, 3, 1, 2), self.side, self.side)
        logits_BN = self.model.logits(whole_BChh.permute(0, 2, 3, 1))
        return logits_BN, logits_BN.argmax(1), logits_BN.softmax(1)


class _AllCrops(nn.Module):
    """Classifies every crop, and averages."""

    def __init__(self, model: SelectiveClassifier, layout: CropLayout) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels_BCHW = images.permute(0, 3, 1, 2)
        crops_BKChh = cut_candidates(pixels_BCHW, self.layout, self.model.candidates)
        every_NhhC = crops_BKChh.flatten(0, 1).permute(0, 2, 3, 1)
        logits_BKN = self.model.logits(every_NhhC).reshape(*crops_BKChh.shape[:2], -1)
        chances_BN = logits_BKN.softmax(2).mean(1)
        return chances_BN.log(), chances_BN.argmax(1), chances_BN


def bench_latency(
    config: LatencyBenchConfig, *, run: LoadedRun, progress: Progress
) -> tuple[list[Row], dict[str, object]]:
    """Time one decoded photograph at a time in onnxruntime: its resizing counts, decoding does not.

    Args:
        config: What is measured.
        run: From `load_exported_run`.
        progress: Shows turns.

    Returns:
        Rows in images/s, and what was measured.
    """
    layout = run.spec.crop_layout
    proposer, classifier = count_macs(run.model)
    num_crops = len(run.model.candidates)
    graphs: Sequence[tuple[str, nn.Module, int]] = (
        (CHOSEN, ChoiceGraph(run.model, layout), proposer + classifier),
        ("the whole image", _WholeImage(run.model, layout), classifier),
        (f"all {num_crops} crops", _AllCrops(run.model, layout), num_crops * classifier),
    )
    contenders = [_contender(name, graph, macs, config) for name, graph, macs in graphs]
    rows = interleave(contenders, rounds=config.rounds, progress=progress)
    setting = {
        "image": "x".join(map(str, PHOTO[1:3])), "batch": 1, "threads": config.threads,
        "precision": "float32", "torch": torch.__version__,
    }  # fmt: skip
    return rows, setting


def _contender(name: str, graph: nn.Module, macs: int, config: LatencyBenchConfig) -> Contender:
    run = onnx_runner(pack_onnx(trace(graph), ""), threads=config.threads)
    image = np.random.default_rng(0).integers(0, 256, PHOTO, np.uint8)

    def measure() -> Turn:
        started, count, seconds = time.perf_counter(), 0, 0.0
        while seconds < config.seconds:
            run(image)
            count, seconds = count + 1, time.perf_counter() - started
        return Turn(rate=count / seconds, figures={"ms": 1e3 * seconds / count})

    row = Row(name=name, figures={"MMACs": macs / MEGA})
    return Contender(row=row, measure=measure, against=() if name == CHOSEN else (CHOSEN,))
