"""srp-train: shards in, figures out.

What other programs need is imported from here, each name with its module when it is first used:
`import training` itself loads nothing. `README.md` has an example.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.choose.method import train
    from training.config import TrainConfig
    from training.data.processes import Process
    from training.data.shards import Batch, TrainingBatches
    from training.export.registered import srp_resnet18
    from training.model.classifier import SelectiveClassifier
    from training.model.policies import POLICIES
    from training.run.load import load_model
    from training.run.state import RunState, build_state
    from training.run.step import train_step
    from training.saved.folder import RunPaths
    from training.saved.record import RunRecord, load_record
    from training.score.classify import classify_crops
    from training.score.crop_logits import CropLogits
    from training.score.metrics import Evaluation, summarise

__all__ = [
    "POLICIES", "Batch", "CropLogits", "Evaluation", "Process", "RunPaths", "RunRecord", "RunState",
    "SelectiveClassifier", "TrainConfig", "TrainingBatches", "build_state", "classify_crops",
    "load_model", "load_record", "srp_resnet18", "summarise", "train", "train_step",
]  # fmt: skip

_HOMES = {
    "choose.method": ("train",),
    "config": ("TrainConfig",),
    "data.processes": ("Process",),
    "data.shards": ("Batch", "TrainingBatches"),
    "export.registered": ("srp_resnet18",),
    "model.classifier": ("SelectiveClassifier",),
    "model.policies": ("POLICIES",),
    "saved.folder": ("RunPaths",),
    "run.load": ("load_model",),
    "saved.record": ("RunRecord", "load_record"),
    "run.state": ("RunState", "build_state"),
    "run.step": ("train_step",),
    "score.classify": ("classify_crops",),
    "score.crop_logits": ("CropLogits",),
    "score.metrics": ("Evaluation", "summarise"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"training.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
