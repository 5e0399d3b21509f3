"""Folders for timm: loaded where srp cannot be imported, and by srp with the proposer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.common.errors import CheckpointError, ConfigError
from training import srp_resnet18
from training.export.model_card import read_verdict, write_card
from training.export.timm_folder import load_timm_folder, write_timm_folder
from training.predict.load import LoadedRun
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

WITHOUT_SRP = """
import sys
sys.modules["training"] = sys.modules["pipeline"] = None
import timm, torch
from safetensors.torch import load_file
classifier = timm.create_model("local-dir:folder", pretrained=True).eval()
given = load_file("given.safetensors")
with torch.inference_mode():
    found = classifier(given["inputs"])
print(float((found - given["logits"]).abs().max()), classifier.pretrained_cfg["crop_mode"])
"""


@pytest.fixture(scope="module")
def folder(
    loaded: LoadedRun, finished: tuple[RunPaths, RunRecord],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The run as a folder for timm. Only read it."""
    out = tmp_path_factory.mktemp("timm") / "folder"
    out.mkdir()
    write_timm_folder(loaded, out, card=write_card(loaded, finished[1], "worth it. By 3 points."))
    return out


@pytest.mark.sweep  # a program that imports timm
def test_timm_loads_the_classifier_without_srp(
    folder: Path, loaded: LoadedRun, tmp_path: Path
) -> None:
    inputs = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = loaded.model.classifier(inputs)
    save_file({"inputs": inputs, "logits": logits}, tmp_path / "given.safetensors")
    (tmp_path / "folder").symlink_to(folder)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SRP],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    difference, mode = done.stdout.split()
    assert float(difference) < 1e-4
    assert mode == "squash"


def test_the_config_has_what_timms_schema_asks_for(folder: Path, loaded: LoadedRun) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    assert config["architecture"] == "test_resnet"
    assert tuple(config["label_names"]) == loaded.classes
    assert config["label_descriptions"][loaded.classes[0]] == loaded.class_names[0]
    assert config["model_args"]["num_classes"] == len(loaded.classes)
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert "license" not in config["pretrained_cfg"]  # that of timm's own weights
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "proposer.safetensors",
    }  # fmt: skip


def test_srp_loads_both_networks_bit_for_bit(folder: Path, loaded: LoadedRun) -> None:
    model, spec = load_timm_folder(folder)
    assert spec == loaded.spec
    expected = loaded.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_card_says_data_figures_seed_rule_licence_and_verdict(
    folder: Path, finished: tuple[RunPaths, RunRecord]
) -> None:
    card = (folder / "README.md").read_text()
    top1 = finished[1].evaluation.top1  # type: ignore[union-attr]
    for words in (
        f"{top1:.2f} % of 29 validation images, one seed (42)", "70 training", "squashed",
        "license: other", "**Licence:** Not stated", "worth it. By 3 points.",
    ):  # fmt: skip
        assert words in card, words


def test_a_damaged_folder_and_a_damaged_audit_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"srp": {}}')
    with pytest.raises(
        CheckpointError, match="a folder for timm must be one that srp-train export"
    ):
        load_timm_folder(tmp_path)
    assert read_verdict(tmp_path) is None
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Audit again: srp-train audit"):
        read_verdict(tmp_path)


def test_timm_makes_the_chooser_by_name(folder: Path) -> None:
    assert "srp_resnet18" in timm.list_models()
    chooser = timm.create_model("srp_resnet18", pretrained=True, source=folder).eval()
    rule = timm.data.resolve_data_config(model=chooser)
    assert (rule["input_size"], rule["crop_mode"]) == ((3, 48, 48), "squash")
    with torch.inference_mode():
        assert chooser(torch.randn(2, 3, 48, 48)).shape == (2, 10)


def test_an_untrained_chooser_learns_with_any_backbone() -> None:
    chooser = timm.create_model(
        "srp_resnet18", backbone="test_resnet", canvas_size=48, crop_size=32, glimpse_size=16,
        num_classes=4,
    ).train()  # fmt: skip
    chooser(torch.randn(2, 3, 48, 48)).sum().backward()
    learnt = {name for name, weight in chooser.named_parameters() if weight.grad is not None}
    assert learnt
    assert all(".classifier." in name for name in learnt)
    assert not chooser.graph.model.proposer.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True}, "srp_resnet18 has no weights of its own"),
        ({"drop_rate": 0.1}, "got drop_rate. Leave it out"),
    ],
)
def test_what_the_chooser_does_not_take_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        srp_resnet18(**options)
