"""The graph in torch: what it sees is what the run sees."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import PhotoSpec, ShardFolder, place_crops, read_photos
from training.config import TrainConfig
from training.data.processes import Process
from training.export.check import Answers, check_agreement, decoded
from training.export.graph import ChoiceGraph, cut_candidates
from training.export.run import load_exported_run
from training.predict.load import LoadedRun
from training.saved.record import RunRecord


def eager(run: LoadedRun) -> Callable[[np.ndarray], Answers]:
    graph = ChoiceGraph(run.model, run.spec.crop_layout).eval()

    def answer(images: np.ndarray) -> Answers:
        with torch.inference_mode():
            return Answers(*(each.numpy() for each in graph(torch.from_numpy(images))))

    return answer


@pytest.mark.parametrize(
    "options",
    [
        {"proposer": "map", "glimpse_size": 24, "position_prior": True},
        {"proposer": "joint", "candidates": "five", "pad_glimpses": True},
        {"policy": "whole"},
        {"policy": "centre"},
        {"policy": "mean"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_graph_says_what_the_run_says(
    options: dict[str, str], tiny: Callable[..., TrainConfig], train: Callable[..., RunRecord],
    tmp_path: Path, files: list[Path],
) -> None:  # fmt: skip
    train(tiny(**options), tmp_path / "run")
    run = load_exported_run(tmp_path / "run")
    found = check_agreement(run, eager(run), files, workers=1)
    assert found.num_same_crop == len(files)


@pytest.mark.parametrize("candidates", ["full+five", "full+strips", "full+grid3"])
def test_candidates_are_those_of_a_build_to_within_a_step(
    candidates: str, opened: ShardFolder, files: list[Path], alone: Process
) -> None:
    spec = replace(opened.manifest.spec, candidates=candidates)
    layout = place_crops(candidates, canvas_px=48, crop_px=32)
    every = tuple(range(len(layout)))
    for file, photo in read_photos(files[:3], PhotoSpec(data=spec), workers=1):
        pixels = torch.from_numpy(decoded(file, turned=True).copy()).permute(2, 0, 1)[None]
        found = cut_candidates(pixels, layout, every)[0].permute(0, 2, 3, 1).int()
        for k in every:
            box = layout.boxes[k]
            expected = (
                photo.canvas_CC3[box.y0 : box.y1, box.x0 : box.x1]
                if layout.is_cut(k)
                else photo.resized_RHW3[layout.resized.index(k)]
            )
            assert (found[k] - torch.from_numpy(expected.astype(np.int32))).abs().max() <= 1
