"""A run's networks and its rule for images, from one checkpoint: no shards are needed."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline import FULL, DataSpec, decoder_library
from pipeline.common.errors import CheckpointError
from training.model.classifier import SelectiveClassifier
from training.model.policies import POLICIES
from training.saved.checkpoint import (
    CheckpointMeta,
    check_own,
    checkpoint_of,
    load_weights,
    read_meta,
)
from training.saved.folder import RunPaths
from training.saved.record import load_record


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """What a prediction needs of a run.

    Attributes:
        model: Its networks, in evaluation mode, on a device.
        spec: What is made of an image; its candidates hold those of the model.
        classes: Names of the class folders, in the order of the logits.
        class_names: The same for people.
        notes: What a user should know before the first prediction, one line each.
    """

    model: SelectiveClassifier
    spec: DataSpec
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def load_run(run: Path, device: torch.device) -> LoadedRun:
    """Load a run from its folder, or from one of its checkpoints.

    Args:
        run: A folder, whose last checkpoint is taken, or a checkpoint.
        device: Where the networks compute.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged, not the one that the folder's
            record names, or of an old version and without a record that has its classes' names.
    """
    file = checkpoint_of(run)
    meta = read_meta(file)
    class_names = _class_names(file, meta, is_own=run.is_dir())
    spec, config, notes = meta.spec, meta.config, []
    policy = POLICIES[config.policy]
    if policy.is_random or policy.averages:
        if not spec.candidates.startswith(FULL):
            spec = replace(spec, candidates=f"{FULL}+{spec.candidates}")
        config = replace(config, candidates=FULL)
        notes.append(
            f"the run has neither a proposer nor a crop of its own (--policy {config.policy}): "
            "the whole image is taken"
        )
    elif policy.fixed_crop:
        notes.append(f"the run has no proposer: it takes the crop {policy.fixed_crop!r} of each")
    if spec.decoder_library != decoder_library(spec):
        notes.append(
            f"the run's images were decoded by {spec.decoder_library or spec.decoder}, and these "
            f"are by {decoder_library(spec)}: pixels may differ by a step"
        )
    model = SelectiveClassifier(
        config,
        plan=spec.crop_layout,
        num_classes=len(meta.classes),
        glimpse_px=config.glimpse_size or spec.glimpse_size,
    )
    load_weights(file, model)
    return LoadedRun(
        model=model.to(device).eval(),
        spec=spec,
        classes=meta.classes,
        class_names=class_names,
        notes=tuple(notes),
    )


def _class_names(file: Path, meta: CheckpointMeta, *, is_own: bool) -> tuple[str, ...]:
    """Take the classes' names from a checkpoint, or from the record next to an old one.

    Args:
        file: The checkpoint.
        meta: What it says about itself.
        is_own: Whether it must be the one that the record names.
    """
    paths = RunPaths(folder=file.parent)
    names = meta.class_names
    if paths.record.exists():
        record = load_record(paths.record)
        if is_own:
            check_own(file, meta, record)
        if not names and record.data.classes == meta.classes:
            names = record.data.class_names
    if len(names) != len(meta.classes):
        raise CheckpointError(
            f"a checkpoint must name its classes; got {len(names)} names of {len(meta.classes)} "
            f"classes in {file}, as older versions of srp wrote it. Put its run's record.json next "
            "to it, which has them."
        )
    return names
