"""Out-of-fold logits: each training image classified by a classifier that has not seen it.

Distillation and the estimate of the headroom fit their proposers to them. They are computed once,
and kept in the folder of the run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline import ShardFolder
from pipeline.common.progress import SILENT, Progress
from training.config import FOLDS, TrainConfig
from training.data.processes import Process, wait_for_main
from training.run.state import build_model, fold_rows
from training.saved.checkpoint import digest_of, load_weights
from training.saved.folder import RunPaths
from training.score.classify import classify_crops
from training.score.crop_logits import NAMES, CropLogits

JUDGING = tuple(f"judge, half {fold + 1} of {FOLDS}" for fold in range(FOLDS))


def out_of_fold_logits(
    path: Path,
    folds: Sequence[RunPaths],
    config: TrainConfig,
    *,
    shards: ShardFolder,
    process: Process,
    with_mirrors: bool = False,
    progress: Progress = SILENT,
) -> CropLogits:
    """Load the out-of-fold logits of the training split, or compute and save them.

    Args:
        path: Their file, in a folder that this process has locked.
        folds: Trained classifiers, each without the images of its own fold.
        config: That they share but for the fold and the seed.
        shards: That they were trained on.
        process: This one among its peers.
        with_mirrors: See `classify_crops`.
        progress: Shows images.

    Raises:
        CheckpointError: If the file that is there is of other samples or weights.
    """
    num_samples = shards.manifest.num_samples("train")
    model = build_model(config, shards, process)
    weights = tuple(digest_of(run.last) for run in folds)
    if path.exists():
        shape = (num_samples, len(model.candidates))
        return CropLogits.load(path, weights=weights, shape=shape)
    rows = [fold_rows(shards, fold) for fold in range(len(folds))]
    parts = []
    for fold, run in enumerate(folds):
        load_weights(run.last, model)
        parts.append(
            classify_crops(
                model, shards, process=process, split="train", rows=rows[fold], stage=JUDGING[fold],
                with_mirrors=with_mirrors,
                progress=progress,
            )
        )  # fmt: skip
    place_N = torch.from_numpy(np.concatenate(rows)).argsort()
    logits = CropLogits(
        **{name: torch.cat([getattr(part, name) for part in parts])[place_N] for name in NAMES}
    )
    if process.is_main:
        logits.save(path, weights=weights)
    wait_for_main(process)
    return logits
