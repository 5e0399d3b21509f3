"""`srp_resnet18`, a model of timm's own list: a canvas in, the class of one crop out.

timm has no entry points, so a model is on its list once the module that registers it is imported:
`from training import srp_resnet18`.

Axes: B images, C px of the canvas, N classes.
"""

from pathlib import Path
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from pipeline import CropLayout, place_crops
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.export.graph import ChoiceGraph
from training.export.run import load_exported_run
from training.export.timm_folder import CONFIG, load_timm_folder
from training.model.classifier import SelectiveClassifier

NAME = "srp_resnet18"
default_cfgs = generate_default_cfgs(
    {
        f"{NAME}.untrained": {
            "input_size": (3, 336, 336), "interpolation": "bilinear", "crop_pct": 1.0,
            "crop_mode": "squash", "fixed_input_size": True, "num_classes": 10,
            "mean": TrainConfig.mean, "std": TrainConfig.std,
        }
    }
)  # fmt: skip


class CanvasChooser(nn.Module):
    """Takes canvases as timm's own loaders make them, and classifies one crop of each.

    It learns as in the last of the four stages: the classifier learns on chosen crops, and the
    proposer is held.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: SelectiveClassifier, layout: CropLayout) -> None:
        """Take both networks and where the crops lie."""
        super().__init__()
        self.graph = ChoiceGraph(model, layout)
        self.num_classes = model.num_classes
        for name, values in (("mean_C11", model.config.mean), ("std_C11", model.config.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        side = layout.canvas_px
        self.pretrained_cfg = default_cfgs[NAME].default.to_dict() | {
            "architecture": NAME, "input_size": (3, side, side), "num_classes": self.num_classes,
            "mean": model.config.mean, "std": model.config.std,
        }  # fmt: skip
        self.default_cfg = self.pretrained_cfg

    def forward(self, canvases_B3CC: Tensor) -> Tensor:
        """Classify normalised canvases, float32 `(B, N)`."""
        colours = (canvases_B3CC * self.std_C11 + self.mean_C11) * 255
        images = colours.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        logits_BN: Tensor = self.graph(images)[0]
        return logits_BN

    def train(self, mode: bool = True) -> "CanvasChooser":
        """Train the classifier; the proposer's averages stay."""
        super().train(mode)
        if self.graph.model.proposer is not None:
            self.graph.model.proposer.eval()
        return self


@register_model  # type: ignore[untyped-decorator] # timm has no types
def srp_resnet18(
    pretrained: bool = False,
    *,
    source: str | Path | None = None,
    backbone: str = "resnet18",
    proposer: str = "map",
    candidates: str = "full+five",
    canvas_size: int = 336,
    crop_size: int = 224,
    glimpse_size: int = 64,
    num_classes: int = 10,
    **others: Any,
) -> CanvasChooser:
    """Make a chooser of crops: `timm.create_model("srp_resnet18", pretrained=True, source=RUN)`.

    Args:
        pretrained: Take both networks from `source`, which decides all that follows it here.
        source: A run, a checkpoint, or a folder that `srp-train export --format timm` wrote.
        backbone: Of timm's models, the classifier.
        proposer: `map`, `crops` or `joint`.
        candidates: Set of crops.
        canvas_size: Side of the canvas, px.
        crop_size: Side of a crop, px.
        glimpse_size: Side of a glimpse, px.
        num_classes: Outputs.
        others: What timm passes to all its models; arguments of no use here are refused.

    Raises:
        ConfigError: If weights are asked for without a source, or an argument is not known.
        CheckpointError: If the source has no weights.
    """
    if unknown := {name for name, value in others.items() if value} - _TIMMS:
        raise ConfigError(
            f"{NAME} takes source, or backbone, proposer, candidates, sizes and num_classes; got "
            f"{', '.join(sorted(unknown))}. Leave it out."
        )
    if pretrained and source is None:
        raise ConfigError(
            f"{NAME} has no weights of its own; got pretrained=True without a source. "
            "Name a run, or a folder that srp-train export --format timm wrote: source=PATH"
        )
    if pretrained and source is not None:
        return CanvasChooser(*_load(Path(source)))
    config = TrainConfig(policy="distilled", model=backbone, proposer=proposer, amp=False)
    layout = place_crops(candidates, canvas_px=canvas_size, crop_px=crop_size)
    model = SelectiveClassifier(
        config, plan=layout, num_classes=num_classes, glimpse_px=glimpse_size
    )
    return CanvasChooser(model, layout)


_TIMMS = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def _load(source: Path) -> tuple[SelectiveClassifier, CropLayout]:
    if (source / CONFIG).exists():
        model, spec = load_timm_folder(source)
        return model, spec.crop_layout
    run = load_exported_run(source)
    return run.model, run.spec.crop_layout
