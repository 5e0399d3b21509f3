"""The page that goes with exported weights, in the form of the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

import timm

from pipeline.common.errors import CheckpointError
from training.export.description import describe
from training.predict.load import LoadedRun
from training.saved.record import RunRecord

TAGS = ["image-classification", "timm", "region-proposal"]
USAGE = """
The classifier of one crop, with timm alone:

```python
import timm

classifier = timm.create_model("local-dir:PATH", pretrained=True).eval()
```

Both networks, with srp installed (`pip install 'srp[train]'`):

```python
import timm
from training import srp_resnet18  # registers it

chooser = timm.create_model("srp_resnet18", pretrained=True, source="PATH").eval()
```
"""
LICENCE = (
    "Not stated: weights learn from images, so the images' terms may bind them. State one here "
    "before others use them."
)


def read_verdict(run: Path) -> str | None:
    """Read the answer of the audit in a run's folder; None where there is none.

    Raises:
        CheckpointError: If the file is damaged.
    """
    file = run / "audit.json"
    try:
        fields: dict[str, Any] = json.loads(file.read_bytes())
        return f"{fields['answer']}. {fields['verdict']}"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"audit.json must be one that srp-train audit wrote; got {type(error).__name__}: "
            f"{error} in {file}. Audit again: srp-train audit {run}"
        ) from error


def write_card(run: LoadedRun, record: RunRecord | None, verdict: str | None) -> str:
    """Write the model card, in the form of timm's own.

    Args:
        run: That is exported.
        record: Of the run; None where only a checkpoint is there.
        verdict: Of its audit, if there is one.
    """
    about = describe(run)
    details: dict[str, object] = {
        "Input": (
            f"a picture of {about.crop_px} px, squashed, not cropped: the chosen one of "
            f"{', '.join(about.crops)} of an image resized to {about.canvas_px} px"
        ),
        "Policy": about.policy,
        "Classifier": about.architecture,
        "Classes": ", ".join(about.class_names),
        "Licence": LICENCE,
    }
    if record is not None:
        details |= _figures(record)
    if verdict is not None:
        details["Audit: is choosing worth it?"] = verdict
    if about.notes:
        details["Notes"] = list(about.notes)
    card = {
        "tags": TAGS, "license": "other", "license_name": "not-stated", "usage": USAGE,
        "description": "A classifier of one crop of each image"
        + ("." if run.model.proposer is None else ", and the small network that chooses the crop."),
        "details": details,
    }  # fmt: skip
    name = about.architecture if record is None else record.name
    return str(timm.models._hub.generate_readme(card, name))


def _figures(record: RunRecord) -> dict[str, object]:
    """List what the run was trained on and what it reached."""
    data, evaluation = record.data, record.evaluation
    figures: dict[str, object] = {
        "Data": f"{data.num_train:,} training and {data.num_val:,} validation images, shards "
        f"{data.fingerprint[:12]}",
        "Hardware": record.hardware,
        "Commit of srp": record.commit,
    }
    if evaluation is not None:
        macs = (evaluation.proposer_macs + evaluation.classifier_macs) / 1e6
        figures["Top-1"] = (
            f"{evaluation.top1:.2f} % of {evaluation.num_samples:,} validation images, one seed "
            f"({record.config.seed}), at {macs:.0f} MMACs an image"
        )
    return figures
