"""What an exported file says about itself, as JSON in its own metadata."""

from dataclasses import dataclass

import msgspec

from training.predict.load import LoadedRun

FORMAT = "srp-export/1"
KEY = "srp"  # of the metadata
LOGIT_TOLERANCE = 0.05  # about what bfloat16 changes in a run
TIE = 0.02  # two crops of probabilities this close may change places
SIZES = "the image itself in its own size; all images of a batch have one size"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a program needs to know to use a graph, in words where a number does not say it.

    Attributes:
        format: Of this description.
        policy: How the crop is chosen.
        architecture: Of the classifier, by its name in timm.
        classes: Names of the class folders, in the order of the logits.
        class_names: The same for people.
        crops: Names of the candidates, in the order of the probabilities.
        boxes: Their places as fractions of the image: x0, y0, x1, y1.
        canvas_px: Side of the canvas, px.
        crop_px: Side of what the classifier sees, px.
        input: What the input must be.
        outputs: What the outputs are.
        precision: Of both networks.
        tolerance: How far the outputs may be from the run's own.
        mean: Of each colour, 0 to 1; it is subtracted inside.
        std: What is divided by, inside.
        notes: What else a user should know.
    """

    format: str = FORMAT
    policy: str
    architecture: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    crops: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    canvas_px: int
    crop_px: int
    input: str
    outputs: str
    precision: str = "float32"
    tolerance: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Lay it out; its format comes first."""
        return msgspec.json.encode(self).decode()


def describe(run: LoadedRun) -> Description:
    """Describe a run that is exported."""
    model, config, layout = run.model, run.model.config, run.spec.crop_layout
    boxes = layout.normalised()
    upright = "upright (EXIF orientation applied)" if run.spec.exif else "as stored, not turned"
    return Description(
        policy=config.policy,
        architecture=config.model,
        classes=run.classes,
        class_names=run.class_names,
        crops=model.names,
        boxes=tuple(boxes[k] for k in model.candidates),
        canvas_px=layout.canvas_px,
        crop_px=layout.crop_px,
        input=(
            f"images: uint8 (batch, height, width, 3), RGB, {upright}; {SIZES}. It is resized "
            f"inside, without keeping its aspect: to a canvas of {layout.canvas_px} px, and where "
            "a crop is no window of the canvas to that crop. A canvas in place of the image makes "
            "those crops from the canvas, which is another picture."
        ),
        outputs=(
            "logits: float32 (batch, classes), of the chosen crop; choice: int64 (batch), index of "
            "that crop; probabilities: float32 (batch, crops), the proposer's"
        ),
        tolerance=(
            f"logits within {LOGIT_TOLERANCE} of the run's own in float32; the same crop, unless "
            f"the probabilities of two are within {TIE}. Pixels are resized to within one of 255 "
            "steps of Pillow's."
        ),
        mean=config.mean,
        std=config.std,
        notes=run.notes,
    )
