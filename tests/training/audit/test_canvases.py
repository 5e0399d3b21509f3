import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.audit.canvases import check_canvases, make_offer, predict_canvases
from training.audit.priced import at_price
from training.config import TrainConfig
from training.data.processes import Process
from training.run.folder import RunPaths
from training.run.record import RunRecord
from training.run.state import build_model
from training.score.evaluate import make_table

Tiny = Callable[..., TrainConfig]


def ignore(*_: object) -> None:
    pass


def test_canvases_are_classified_as_they_are_stored(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(), opened, alone).eval()
    seen: list[int] = []
    predicted_N = predict_canvases(model, opened, process=alone, on_images=seen.append)
    assert sum(seen) == len(predicted_N) == 29
    reader, plan = opened.reader("val"), opened.crop_layout
    with torch.inference_mode():
        for index in (0, 5, 28):
            canvas = torch.zeros((1, 48, 48, 3), dtype=torch.uint8)
            sample = reader.read(index)
            for k, box in enumerate(plan.boxes):
                if plan.is_cut(k):  # the four corners cover all of the canvas
                    crop_HWC = torch.tensor(sample.crops[k]).permute(1, 2, 0)
                    canvas[0, box.y0 : box.y1, box.x0 : box.x1] = crop_HWC
            assert predicted_N[index] == model.logits(canvas).argmax(1)[0]


def test_the_ranks_canvases_add_up(
    opened: ShardFolder, alone: Process, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny(), opened, alone)
    whole = predict_canvases(model, opened, process=alone, on_images=ignore)
    monkeypatch.setattr("training.audit.canvases.sum_over_ranks", lambda tensor, _: tensor)
    parts = [
        predict_canvases(
            model, opened, process=replace(alone, rank=rank, world_size=3), on_images=ignore
        )
        for rank in range(3)
    ]
    assert torch.equal(sum(parts[1:], parts[0]), whole)


def test_a_canvas_costs_what_torch_counts_and_both_costs_hold_the_proposers(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(model="resnet18"), opened, alone)
    table = make_table(model, opened, process=alone, on_images=ignore)
    offer = make_offer(model, opened, table, process=alone, on_images=ignore)
    # ResNet18 halves 32 px five times to 1 and 48 px to 2: more than the square of the sides.
    assert 1.5**2 < offer.canvas_macs / offer.crop_macs < 2**2
    assert at_price(offer, math.inf).macs == offer.crop_macs
    assert at_price(offer, 0).macs == pytest.approx(offer.canvas_macs)


def test_what_cannot_be_priced_says_why(
    opened: ShardFolder, scene_tensors: Path, alone: Process, tiny: Tiny
) -> None:
    with pytest.raises(ConfigError, match=r"needs shards that hold canvases; got --layout tensors"):
        check_canvases(build_model(tiny(), opened, alone), ShardFolder.open(scene_tensors))
    with pytest.raises(ConfigError, match=r"needs a run that chooses.*got --policy whole"):
        check_canvases(build_model(tiny(policy="whole"), opened, alone), opened)
    fixed = build_model(tiny(), opened, alone)
    fixed.classifier = OnlyCrops()
    with pytest.raises(ConfigError, match=r"takes images of more than one size; got Input height"):
        check_canvases(fixed, opened)
    manifest = replace(opened.manifest, spec=replace(opened.manifest.spec, canvas_size=32))
    with pytest.raises(ConfigError, match=r"must be larger than a crop; got 32 px"):
        check_canvases(fixed, replace(opened, manifest=manifest))


class OnlyCrops(torch.nn.Module):
    """A classifier that takes one size of image, as timm's vision transformers do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == 32, "Input height doesn't match model"
        return torch.zeros(len(images), 10)


def test_evaluate_scores_at_one_price(
    finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any]
) -> None:
    paths, record = finished
    assert record.evaluation is not None
    words = ("evaluate", paths.folder, "--device", "cpu", "--price")
    never = json.loads(srp_train(*words, "inf", "--json").stdout)
    assert never["top1"] == record.evaluation.top1 == never["priced"]["top1"]
    assert (never["priced"]["price"], never["priced"]["share"]) == (None, 0)
    cost = record.evaluation.proposer_macs + record.evaluation.classifier_macs
    assert never["priced"]["macs"] == cost
    always = srp_train(*words, "0")
    assert always.exit_code == 0, always.output
    assert "the whole canvas at a price of 0\n" in always.stdout
    assert f"  {'bought it, % of the images':<32} {100:8.2f}\n" in always.stdout


@pytest.mark.parametrize(
    ("price", "reason"), [("-1", "--price must be at least 0; got -1.0."), ("nan", "got nan")]
)
def test_a_bad_price_ends_before_anything_is_scored(
    price: str, reason: str, finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any]
) -> None:
    result = srp_train("evaluate", finished[0].folder, "--price", price, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert reason in result.stderr
    assert "scoring" not in result.stderr


def test_a_price_on_shards_without_canvases_is_one_line(
    finished: tuple[RunPaths, RunRecord], scene_tensors: Path, srp_train: Callable[..., Any]
) -> None:
    result = srp_train(
        "evaluate", finished[0].folder, "--shards", scene_tensors, "--price", "1", "--device", "cpu"
    )
    assert result.exit_code == 2
    assert "Build shards with --layout canvas." in result.stderr
