"""Read what an audit needs from the disk, and time the run's networks."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import ConfigError
from pipeline.pictures import Box
from training.audit import Audit, Latency, audit
from training.boxes import BoxFigures, box_figures, read_boxes
from training.checkpoint import check_fits, load_weights, read_meta
from training.config import RunPaths
from training.data import Shards
from training.distributed import Process
from training.evaluate import EVALUATION_BATCH
from training.figures import Arm, group_arms
from training.model import SelectiveClassifier
from training.runs import read_runs
from training.trainer import batch_reader, build_model, glimpse_side

REPEATS = 50  # of one image, for the median


def audit_run(
    run: Path,
    *,
    shards: Shards,
    boxes: Path | None,
    workers: int,
    process: Process,
    on_images: Callable[[int, int], None],
) -> Audit:
    """Audit the arm that a run belongs to, beside the other runs in its folder.

    Args:
        run: Folder of one of the arm's runs.
        shards: That it was trained on.
        boxes: CSV of the objects' boxes, or None.
        workers: Threads that read samples.
        process: The only one.
        on_images: Told of images whose boxes were looked up, and of those in all.

    Raises:
        CheckpointError: If the run is damaged or of other shards.
        ConfigError: If the run does not choose or is not finished, or the boxes cannot be used.
    """
    arm, others = _find(run)
    paths = RunPaths(folder=run)
    meta = read_meta(paths.last)
    check_fits(meta, shards.manifest, shards.folder)
    config = replace(meta.config, workers=workers)
    model = build_model(config, shards, process)
    load_weights(paths.last, model)
    model.eval()
    found = None
    if boxes is not None:
        known = read_boxes(boxes)
        found = _boxes(model, shards, known, boxes, process=process, on_images=on_images)
    latency = measure_latency(
        model,
        glimpse_px=glimpse_side(config, shards),
        crop_px=shards.manifest.spec.crop_size,
        device=process.device,
    )
    return replace(audit(arm, others), latency=latency, boxes=found)


def _find(run: Path) -> tuple[Arm, list[Arm]]:
    runs, _ = read_runs(run.resolve().parent)
    arms = group_arms(runs)
    for arm in arms:
        if run.resolve().name in [member.record.name for member in arm.runs]:
            if not arm.config.selects:
                raise ConfigError(
                    f"an audit is of a run that chooses; got --policy {arm.policy} in {run}. "
                    "Name one with another policy; this one is compared with it."
                )
            if any(member.table is None for member in arm.runs):
                raise ConfigError(
                    f"an audit needs each run's table.safetensors; got {run} without. "
                    "Train the run again."
                )
            return arm, [other for other in arms if other is not arm]
    raise ConfigError(
        f"an audit needs a finished run; got {run}, which is not. "
        "Name the folder of a run, or go on with it: add --resume."
    )


@torch.inference_mode()
def measure_latency(
    model: SelectiveClassifier, *, glimpse_px: int, crop_px: int, device: torch.device
) -> Latency:
    """Time both networks on one image, batch size 1, float32.

    Args:
        model: That chooses.
        glimpse_px: Side of the glimpses, px.
        crop_px: Side of the crops, px.
        device: Of the model.
    """
    looked = torch.zeros(
        (1, len(model.looked_at), glimpse_px, glimpse_px), dtype=torch.uint8, device=device
    )
    crop = torch.zeros((1, crop_px, crop_px, 3), dtype=torch.uint8, device=device)
    if model.proposer is None:
        raise RuntimeError("a run that chooses without a proposer")
    proposer = model.proposer
    return Latency(
        proposer_ms=_median_ms(lambda: proposer(looked).chosen_B.item()),
        classifier_ms=_median_ms(lambda: model.logits(crop).argmax().item()),
    )


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 5):  # the first few warm up
        start = time.perf_counter()
        run()  # ends in a number, so a GPU is waited for
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def _boxes(
    model: SelectiveClassifier,
    shards: Shards,
    known: dict[str, list[Box]],
    path: Path,
    *,
    process: Process,
    on_images: Callable[[int, int], None],
) -> BoxFigures:
    """Let the proposer choose on every image that has a box, of val where it has any."""
    split = "val" if any(name.startswith("val/") for name in known) else "train"
    reader = shards.reader(split)
    rows, boxes_N = [], []
    for index in range(len(reader)):
        found = known.get(reader.read(index, candidates=()).meta.path)
        if found:
            rows.append(index)
            boxes_N.append(found)
        on_images(index + 1, len(reader))
    if not rows:
        raise ConfigError(
            f"--boxes must be of the shards' images; got none of {split} in {path}. "
            "Its column path holds paths such as val/CLASS/NAME.JPEG."
        )
    return box_figures(
        _choices(model, shards, split, np.array(rows), process),
        boxes_N,
        [shards.plan.normalised()[k] for k in model.candidates],
        centre=model.names.index("centre") if "centre" in model.names else None,
    )


@torch.inference_mode()
def _choices(
    model: SelectiveClassifier,
    shards: Shards,
    split: str,
    rows: np.ndarray,
    process: Process,
) -> list[int]:
    reader = batch_reader(model.config, shards, model, split, process)
    pieces = [rows[at : at + EVALUATION_BATCH] for at in range(0, len(rows), EVALUATION_BATCH)]
    chosen: list[int] = []
    for batch in reader.batches(pieces):
        if model.proposer is None or batch.glimpses_BLSS is None:
            raise RuntimeError("a run that chooses without a proposer")
        chosen += model.proposer(batch.glimpses_BLSS).chosen_B.tolist()
    return chosen
