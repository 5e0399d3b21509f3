"""A run as a folder that timm loads: the classifier without srp, and the proposer beside it."""

import copy
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline import DataSpec
from pipeline.command.settings import named_values
from pipeline.common.atomic_io import write_file
from pipeline.common.errors import CheckpointError, VerificationError
from training.config import TEACHING, TrainConfig
from training.export.description import FORMAT, KEY, describe
from training.model.classifier import SelectiveClassifier
from training.predict.load import LoadedRun
from training.saved.record import config_from_json

CONFIG, WEIGHTS, PROPOSER, CARD = (
    "config.json", "model.safetensors", "proposer.safetensors", "README.md",
)  # fmt: skip
FILES = (WEIGHTS, PROPOSER, CARD, CONFIG)  # in the order of writing: the config names the others


def write_timm_folder(run: LoadedRun, folder: Path, *, card: str) -> tuple[Path, ...]:
    """Write a run's networks for timm, once timm has loaded them and says the same.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` is the classifier of crops. The
    proposer's weights lie in a file of their own, and `config.json` has what rebuilds both.

    Args:
        run: From `load_exported_run`.
        folder: Exists.
        card: Text of the model card.

    Raises:
        VerificationError: If timm's classifier gives other logits; then nothing is written.
    """
    with tempfile.TemporaryDirectory() as aside:
        made = Path(aside)
        _save_classifier(run, made)
        (made / CARD).write_text(card, encoding="utf-8")
        if run.model.proposer is not None:
            save_file(
                run.model.proposer.state_dict(), made / PROPOSER, {KEY: describe(run).to_json()}
            )
        _check(run, made)
        written = [name for name in FILES if (made / name).exists()]
        for name in written:
            write_file(folder / name, (made / name).read_bytes())
    if run.model.proposer is None:
        (folder / PROPOSER).unlink(missing_ok=True)  # of an older export
    return tuple(folder / name for name in written)


def _save_classifier(run: LoadedRun, folder: Path) -> None:
    """Let timm write its own two files, with our description in the config."""
    config, side = run.model.config, run.model.crop_px
    classifier = copy.deepcopy(run.model.classifier)
    own: Any = classifier.pretrained_cfg
    # What is not kept belongs to other weights: licence, papers, address.
    kept = {name: own.get(name) for name in ("architecture", "first_conv", "classifier")}
    kept |= {
        "input_size": (3, side, side), "pool_size": None, "mean": config.mean, "std": config.std,
        "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash",
        "num_classes": len(run.classes),
    }  # fmt: skip
    classifier.pretrained_cfg = kept  # type: ignore[assignment] # timm keeps it so
    alone = {name: getattr(TrainConfig, name) for name in TEACHING}
    unplaced = dataclasses.replace(config, initial_checkpoint="", **alone)  # paths of this machine
    rebuilt = {"config": dataclasses.asdict(unplaced), "spec": dataclasses.asdict(run.spec)}
    timm.models.save_for_hf(
        classifier,
        str(folder),
        model_config={
            "label_names": list(run.classes),
            "label_descriptions": dict(zip(run.classes, run.class_names, strict=True)),
            KEY: msgspec.to_builtins(describe(run)) | rebuilt,
        },
        model_args=named_values("--model-kwargs", config.model_kwargs),  # texts for layers
        safe_serialization=True,
    )


def _check(run: LoadedRun, folder: Path) -> None:
    side = run.model.crop_px
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, side, side, 3), dtype=torch.uint8, generator=generator)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (
        torch.tensor(values) * 255 for values in (run.model.config.mean, run.model.config.std)
    )
    with torch.inference_mode():
        expected = run.model.logits(images)
        found = loaded(((images - mean) / std).permute(0, 3, 1, 2))
    difference = float((found - expected).abs().max())
    if not difference <= 1e-3:
        raise VerificationError(
            "timm's classifier must give the run's logits; got a difference of "
            f"{difference:.2g}. Nothing was written. Use --format onnx, or another version of timm."
        )


def load_timm_folder(folder: Path) -> tuple[SelectiveClassifier, DataSpec]:
    """Load both networks from a folder that `write_timm_folder` wrote.

    Raises:
        CheckpointError: If it is no such folder, or damaged.
    """
    try:
        about: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())[KEY]
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}")
        spec = msgspec.convert(about["spec"], DataSpec)
        config = config_from_json(about["config"])
        model = SelectiveClassifier(
            config,
            plan=spec.crop_layout,
            num_classes=len(about["classes"]),
            glimpse_px=config.glimpse_size or spec.glimpse_size,
        )
        model.classifier.load_state_dict(load_file(folder / WEIGHTS))
        if model.proposer is not None:
            model.proposer.load_state_dict(load_file(folder / PROPOSER))
    except (
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(
            "a folder for timm must be one that srp-train export wrote; got "
            f"{type(error).__name__}: {error} in {folder}. Export the run again: srp-train export "
            f"RUN {folder} --format timm"
        ) from error
    return model.eval(), spec
