"""ONNX files: one classifier, free sizes, and an example that needs no torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import ConfigError
from training.export import onnx_file
from training.export.onnx_file import onnx_runner, require_onnx
from training.export.write import Written
from training.predict.load import LoadedRun

README = Path(__file__).resolve().parents[3] / "training/README.md"
pytestmark = pytest.mark.timeout(300)  # ten seconds of CPU time to export, on a busy machine more


def example() -> str:
    """Give the page's example of an ONNX file."""
    blocks = README.read_text(encoding="utf-8").split("```python\n")[1:]
    (found,) = [code for block in blocks if "onnxruntime" in (code := block.split("```")[0])]
    return found


def test_the_file_gives_the_runs_crops_and_classes(onnx: Written, files: list[Path]) -> None:
    found = onnx.agreement
    assert (found.num_images, found.num_same_crop, found.num_same_class) == (11, 11, 11)
    assert found.batches == (1, 5)
    assert found.largest_logit_difference < 0.05


def test_any_number_and_size_of_images_can_be_given(onnx: Written, loaded: LoadedRun) -> None:
    run = onnx_runner(onnx.paths[0].read_bytes())
    for shape in ((1, 48, 48, 3), (7, 33, 90, 3), (2, 200, 20, 3)):
        answers = run(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        assert answers.logits_BN.shape == (shape[0], len(loaded.classes))
        assert answers.choice_B.tolist() == answers.probabilities_BK.argmax(1).tolist()


def test_one_classifier_runs_on_one_crop_of_each_image(onnx: Written, loaded: LoadedRun) -> None:
    graph = pytest.importorskip("onnx").load(onnx.paths[0]).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    networks = (loaded.model.classifier, loaded.model.proposer)
    expected = sum(
        type(module).__name__.startswith("Conv")
        for network in networks
        for module in network.modules()  # type: ignore[union-attr]
    )
    assert len(convolutions) == expected
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    last = shapes[convolutions[-1].output[0]]
    assert last[0].dim_param == "batch"  # and no multiple of it
    (images,) = graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert sizes == ["batch", "height", "width", 3]
    assert [output.name for output in graph.output] == ["logits", "choice", "probabilities"]


def test_the_example_of_the_readme_runs_without_torch(
    onnx: Written, files: list[Path], tmp_path: Path, loaded: LoadedRun
) -> None:
    shutil.copy(onnx.paths[0], tmp_path / "chooser.onnx")
    shutil.copy(files[0], tmp_path / "photo.jpg")
    assert len(example().splitlines()) <= 20
    program = "import sys; sys.modules['torch'] = sys.modules['training'] = None\n" + example()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    name, _, rest = done.stdout.partition(", seen in the crop ")
    assert name in loaded.class_names
    assert rest.split()[0] in loaded.model.names


def test_the_metadata_hold_the_rule_for_the_input_and_the_tolerance(
    onnx: Written, loaded: LoadedRun
) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(onnx.paths[0])
    about = json.loads(session.get_modelmeta().custom_metadata_map["srp"])
    assert about["format"] == "srp-export/1"
    assert tuple(about["class_names"]) == loaded.class_names
    assert tuple(about["crops"]) == loaded.model.names
    assert len(about["boxes"]) == len(about["crops"])
    assert about["precision"] == "float32"
    assert "upright" in about["input"]
    assert "within 0.05" in about["tolerance"]


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ConfigError, match=r"got no onnx\. Install them with: pip install 'srp\[ex"):
        require_onnx()
