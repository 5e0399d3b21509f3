"""The classifier on whole canvases at their own resolution, for `training.audit.priced`.

Axes: N samples of the split, B of a batch.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.audit.priced import Offer, PricedPoint, at_price, check_price
from training.data.processes import Process, sum_over_ranks
from training.model.classifier import SelectiveClassifier, autocast
from training.run.folder import RunPaths
from training.run.load import load_model, shards_of
from training.run.record import RunRecord, load_record
from training.score.cost import count_macs
from training.score.crop_logits import Table
from training.score.evaluate import (
    OnImages,
    count_images,
    evaluate_table,
    val_batches,
)
from training.score.metrics import Evaluation

SCORING = "scoring every canvas"


class PricedEvaluation(NamedTuple):
    """An evaluation as ever, and what its policy reaches where it may buy the canvas."""

    record: RunRecord
    evaluation: Evaluation
    point: PricedPoint


def evaluate_at_price(
    paths: RunPaths,
    *,
    price: float,
    shards_path: Path | None,
    candidates: str | None,
    checkpoint: str,
    workers: int,
    process: Process,
    on_progress: Callable[[str, int, int], None],
) -> PricedEvaluation:
    """Score a run again, and its policy at one price of the whole canvas.

    Args:
        paths: Of the run.
        price: Chance of a better crop that one GMAC more must promise.
        shards_path: To score on; None takes those that the run was trained on.
        candidates: To score and to choose among; None takes the run's.
        checkpoint: `last` or `best`.
        workers: Threads that read samples.
        process: This one among its peers.
        on_progress: Told of a stage, and its images done and to do.

    Raises:
        CheckpointError: If there is no such run, or the shards are of another spec.
        ConfigError: If the canvas cannot be bought, or the price is below 0.
    """
    check_price(price)
    record = load_record(paths.record)
    shards = shards_of(record, shards_path)
    model = load_model(
        paths, shards, candidates=candidates, checkpoint=checkpoint, workers=workers,
        process=process,
    )  # fmt: skip
    check_canvases(model, shards)
    on_crops, on_canvases = (
        count_images(partial(on_progress, stage), shards.manifest.num_samples("val"))
        for stage in ("scoring every crop", SCORING)
    )
    table, evaluation = evaluate_table(model, shards, process=process, on_images=on_crops)
    offer = make_offer(model, shards, table, process=process, on_images=on_canvases)
    return PricedEvaluation(record, evaluation, at_price(offer, price))


def check_canvases(model: SelectiveClassifier, shards: ShardFolder) -> None:
    """Check that a run can buy canvases.

    Raises:
        ConfigError: If it does not choose, the shards hold none that are larger than a crop, or
            the classifier does not take them.
    """
    spec = shards.manifest.spec
    if not model.config.selects:
        raise ConfigError(
            "a priced canvas needs a run that chooses, since its doubt decides; got --policy "
            f"{model.config.policy}. Name one with another policy."
        )
    if spec.layout != "canvas":
        raise ConfigError(
            f"a priced canvas needs shards that hold canvases; got --layout {spec.layout} in "
            f"{shards.path}. Build shards with --layout canvas."
        )
    if spec.canvas_size <= spec.crop_size:
        raise ConfigError(
            f"a priced canvas must be larger than a crop; got {spec.canvas_size} px in "
            f"{shards.path}. Build shards with a larger --canvas-size."
        )
    side = spec.canvas_size
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            model.eval().logits(torch.zeros((1, side, side, 3), device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"a priced canvas needs a --model that takes images of more than one size; got "
            f"{error} from {model.config.model!r} at {side} px. Train a run with another, such "
            "as resnet18."
        ) from error


def make_offer(
    model: SelectiveClassifier,
    shards: ShardFolder,
    table: Table,
    *,
    process: Process,
    on_images: OnImages,
) -> Offer:
    """Let a run classify every canvas of the validation split, and count what each costs.

    Args:
        model: Which `check_canvases` has let pass.
        shards: Those that the table is of.
        table: Of that model.
        process: This one among its peers.
        on_images: Told of images as they pass.
    """
    proposer, crop = count_macs(model)
    _, canvas = count_macs(model, image_px=shards.manifest.spec.canvas_size)
    canvas_N = predict_canvases(model, shards, process=process, on_images=on_images)
    return Offer(table, canvas_N, proposer + crop, proposer + canvas)


@torch.inference_mode()
def predict_canvases(
    model: SelectiveClassifier, shards: ShardFolder, *, process: Process, on_images: OnImages
) -> Tensor:
    """Classify every canvas of the validation split, int64 `(N,)` on the CPU.

    Each rank fills in its rows; their sum is the whole split.
    """
    model.eval()
    num_samples = shards.manifest.num_samples("val")
    predicted_N = torch.zeros(num_samples, dtype=torch.int64, device=process.device)
    for batch, _ in val_batches(model, shards, process):
        if batch.canvases_BCC3 is None:
            raise RuntimeError("a batch without canvases")
        with autocast(model.config, process.device):
            predicted_N[batch.indices_B] = model.logits(batch.canvases_BCC3).argmax(1)
        on_images(len(batch.indices_B) * process.world_size)
    return sum_over_ranks(predicted_N, process).cpu()
