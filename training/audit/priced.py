"""Use the whole canvas where the proposer is unsure: `srp-train evaluate --price`.

Besides the K crops there is one more expensive option: the same classifier on the whole canvas
at its own resolution. The doubt of an image is 1 - max p. The canvas replaces the chosen crop where

    doubt > price * extra GMACs

so the price is the chance of a better crop that one more GMAC must promise: with 0 the canvas is
used wherever there is any doubt, with infinity never. Nothing is trained again.

Axes: N samples, K candidates.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.run.load import load_model, shards_of
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.classify import classify_crops
from training.score.cost import count_macs
from training.score.crop_logits import CropLogits
from training.score.metrics import Evaluation, summarise


class Offer(NamedTuple):
    """The logits of every crop of a run, with the classes of the whole canvases.

    `canvas_N` is int64, the class that the classifier sees in each canvas. `crop_macs` is the cost
    of one image with the chosen crop, `canvas_macs` with the canvas in its place; both include the
    proposer.
    """

    logits: CropLogits
    canvas_N: Tensor
    crop_macs: int
    canvas_macs: int


@dataclass(frozen=True)
class PricedPoint:
    """The accuracy at a price: top-1 in %, MACs an image (mean), and the share of canvases."""

    price: float
    top1: float
    macs: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs; JSON has no infinity, so that price is null."""
        return asdict(self) | {"price": None if math.isinf(self.price) else self.price}


class PricedEvaluation(NamedTuple):
    """An evaluation, and the accuracy of its policy where it may use the canvas."""

    record: RunRecord
    evaluation: Evaluation
    point: PricedPoint


def evaluate_at_price(
    paths: RunPaths,
    *,
    price: float,
    shards_path: str | Path | None,
    candidates: str | None,
    checkpoint: str,
    workers: int,
    process: Process,
    progress: Progress = SILENT,
) -> PricedEvaluation:
    """Score a run again, and its policy at one price of the whole canvas.

    Args:
        paths: Paths of the run's files.
        price: Chance of a better crop that one more GMAC must promise.
        shards_path: To score on; None takes those that the run was trained on.
        candidates: To score and to choose among; None takes the run's.
        checkpoint: `last` or `best`.
        workers: Threads that read samples.
        process: This one among its peers.
        progress: Shows images.

    Raises:
        CheckpointError: If there is no such run, or the shards are of another spec.
        ConfigError: If the canvas cannot be used, or the price is below 0.
    """
    check_price(price)
    record = load_record(paths.record)
    shards = shards_of(record, shards_path)
    model = load_model(
        paths, shards, candidates=candidates, checkpoint=checkpoint, workers=workers,
        process=process,
    )  # fmt: skip
    check_canvases(model, shards)
    offer = make_offer(model, shards, process=process, progress=progress)
    return PricedEvaluation(record, summarise(offer.logits, model), at_price(offer, price))


def check_price(price: float) -> None:
    """Check a price before anything is scored for it.

    Raises:
        ConfigError: If it is below 0.
    """
    if not price >= 0:  # rejects NaN as well
        raise ConfigError(f"--price must be at least 0; got {price}. Use 0 to inf.")


def check_canvases(model: SelectiveClassifier, shards: ShardFolder) -> None:
    """Check that a run can use canvases.

    Raises:
        ConfigError: If it does not choose, the shards hold none that are larger than a crop, or
            the classifier does not take them.
    """
    spec = shards.manifest.spec
    if not model.config.selects:
        raise ConfigError(
            "a priced canvas needs a run that chooses, since the proposer's doubt decides; "
            f"got --policy {model.config.policy}. Name one with another policy."
        )
    if spec.layout != "canvas":
        raise ConfigError(
            f"a priced canvas needs shards that hold canvases; got --layout {spec.layout} in "
            f"{shards.place}. Build shards with --layout canvas."
        )
    if spec.canvas_size <= spec.crop_size:
        raise ConfigError(
            f"a priced canvas must be larger than a crop; got {spec.canvas_size} px in "
            f"{shards.place}. Build shards with a larger --canvas-size."
        )
    try:
        count_macs(model, image_px=spec.canvas_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"a priced canvas needs a --model that takes images of more than one size; got "
            f"{error} from {model.config.model!r} at {spec.canvas_size} px. Train a run with "
            "another, such as resnet18."
        ) from error


def make_offer(
    model: SelectiveClassifier,
    shards: ShardFolder,
    *,
    process: Process,
    progress: Progress = SILENT,
) -> Offer:
    """Classify every crop and canvas of the validation split, and count what each costs.

    Args:
        model: That `check_canvases` accepts.
        shards: To score on.
        process: This one among its peers.
        progress: Shows images.
    """
    proposer, crop = count_macs(model)
    _, canvas = count_macs(model, image_px=shards.manifest.spec.canvas_size)
    seen = classify_crops(
        model, shards, process=process, with_canvas=True,
        stage="scoring every crop and canvas", progress=progress,
    )  # fmt: skip
    logits = replace(seen, logits_NKC=seen.logits_NKC[:, :-1])
    return Offer(logits, seen.predicted_NK[:, -1], proposer + crop, proposer + canvas)


def at_price(offer: Offer, price: float) -> PricedPoint:
    """Score a policy that uses canvases at one price.

    Args:
        offer: A run's crops and canvases, classified.
        price: Chance of a better crop that one more GMAC must promise; 0 to infinity.

    Raises:
        ConfigError: If the price is below 0.
    """
    check_price(price)
    logits, extra_gmacs = offer.logits, (offer.canvas_macs - offer.crop_macs) / 1e9
    uses_canvas_N = doubts(logits) / extra_gmacs > price
    crop_N = logits.right_NK.gather(1, logits.chosen_N[:, None])[:, 0]
    right_N = torch.where(uses_canvas_N, offer.canvas_N == logits.labels_N, crop_N)
    share = float(uses_canvas_N.double().mean())
    return PricedPoint(
        price=price,
        top1=100 * float(right_N.double().mean()),
        macs=offer.crop_macs + share * (offer.canvas_macs - offer.crop_macs),
        share=share,
    )


def doubts(logits: CropLogits) -> Tensor:
    """Give 1 - max p of each image as the sum of the others, exact near 0, float64 `(N,)`."""
    chances_NK = logits.probabilities_NK.double()
    return chances_NK.scatter(1, logits.chosen_N[:, None], 0).sum(1)
