"""Out-of-fold logits: each training image classified by a classifier that has not seen it.

Distillation and the estimate of the headroom fit their proposers to them. They are computed once,
and kept in the folder of the run.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pipeline import ShardFolder
from pipeline.common.progress import SILENT, Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.run.checkpoint import digest_of, load_weights
from training.run.folder import RunPaths, held_run
from training.run.state import build_model, fold_rows
from training.score.classify import classify_crops
from training.score.crop_logits import NAMES, CropLogits, Digests


def out_of_fold_logits(
    home: RunPaths,
    folds: Sequence[RunPaths],
    config: TrainConfig,
    *,
    shards: ShardFolder,
    process: Process,
    train_fold: Callable[[int], None] | None = None,
    option: str = "--output",
    progress: Progress = SILENT,
) -> CropLogits:
    """Load the out-of-fold logits of the training split, or compute and save them.

    Args:
        home: Run in whose folder the file lies; its weights are among those that the file names.
        folds: Classifiers, each trained without the images of its own fold.
        config: That they share but for the fold and the seed.
        shards: That they were trained on.
        process: The only one.
        train_fold: Trains the classifier of a fold, before its weights are loaded; None where they
            are trained already.
        option: That named the folder of `home`.
        progress: Shows images.

    Raises:
        CheckpointError: If the file that is there is of other samples or weights.
        ConfigError: If another process writes into the folder.
    """
    path, num_samples = home.out_of_fold, shards.manifest.num_samples("train")
    model = build_model(config, shards, process)
    if path.exists():
        shape = (num_samples, len(model.candidates))
        return CropLogits.load(path, weights=_digests(home, folds), shape=shape)
    rows = [fold_rows(num_samples, fold) for fold in range(len(folds))]
    parts = []
    with held_run(home, process, option=option):
        for fold, run in enumerate(folds):
            if train_fold is not None:
                train_fold(fold)
            load_weights(run.last, model)
            parts.append(
                classify_crops(
                    model, shards, process=process, split="train", rows=rows[fold],
                    stage="scoring what was left out", progress=progress,
                )
            )  # fmt: skip
        place_N = torch.from_numpy(np.concatenate(rows)).argsort()
        logits = CropLogits(
            **{name: torch.cat([getattr(part, name) for part in parts])[place_N] for name in NAMES}
        )
        logits.save(path, weights=_digests(home, folds))
    return logits


def _digests(home: RunPaths, folds: Sequence[RunPaths]) -> Digests:
    return tuple(digest_of(run.last) for run in (home, *folds))
