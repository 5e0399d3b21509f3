"""A run as it is exported: in float32, on the CPU, of pixels as they are."""

from dataclasses import replace
from pathlib import Path

import torch

from training.predict.load import LoadedRun, load_run


def load_exported_run(run: Path) -> LoadedRun:
    """Load a run or a checkpoint for export.

    A file takes decoded pixels, so what a build did to JPEGs has no place in it: neither a draft
    nor a lossy codec. A note says so.

    Raises:
        CheckpointError: As `load_run`.
    """
    loaded = load_run(run, torch.device("cpu"))
    model = loaded.model
    model.config = replace(model.config, amp=False, channels_last=False, torchcompile=None)
    model.to(memory_format=torch.contiguous_format)  # as files lay weights out
    spec, notes = loaded.spec, list(loaded.notes)
    if spec.draft or spec.codec == "jpeg":
        notes.append("the run's pixels went through a JPEG or a draft; here they are as decoded")
        spec = replace(spec, draft=False, codec="raw", jpeg_quality=None, jpeg_subsampling=None)
    return replace(loaded, spec=spec, notes=tuple(notes))
