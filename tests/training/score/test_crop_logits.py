from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipeline.common.errors import CheckpointError
from training.score.crop_logits import NAMES, CropLogits

SAMPLES, CROPS, CLASSES = 5, 3, 10


@pytest.fixture
def logits() -> CropLogits:
    generator = torch.Generator().manual_seed(11)
    return CropLogits(
        labels_N=torch.randint(0, CLASSES, (SAMPLES,), generator=generator),
        logits_NKC=torch.randn(SAMPLES, CROPS, CLASSES, generator=generator),
        probabilities_NK=torch.randn(SAMPLES, CROPS, generator=generator).softmax(1),
    )


def test_losses_classes_and_the_mean_follow_from_the_logits(logits: CropLogits) -> None:
    for n in range(SAMPLES):
        for k in range(CROPS):
            loss = F.cross_entropy(logits.logits_NKC[n, k], logits.labels_N[n])
            torch.testing.assert_close(logits.losses_NK[n, k], loss)
            assert logits.predicted_NK[n, k] == logits.logits_NKC[n, k].argmax()
        chances_KC = logits.logits_NKC[n].softmax(1)
        assert logits.averaged_N[n] == chances_KC.mean(0).argmax()
    assert logits.right_NK.equal(logits.predicted_NK == logits.labels_N[:, None])


def test_logits_survive_their_file(logits: CropLogits, tmp_path: Path) -> None:
    logits.save(tmp_path / "logits.safetensors", weights=("a",))
    loaded = CropLogits.load(tmp_path / "logits.safetensors")
    for name in NAMES:
        assert torch.equal(getattr(loaded, name), getattr(logits, name))


def test_logits_that_are_damaged_or_of_others_are_refused(
    logits: CropLogits, tmp_path: Path
) -> None:
    path = tmp_path / "logits.safetensors"
    own: dict[str, Any] = {"shape": (SAMPLES, CROPS), "weights": ("a", "b")}
    logits.save(path, weights=("a", "b"))
    for weights in (("a", "b"), ("a", ""), ("", "b"), ()):  # of one the file may be gone
        CropLogits.load(path, **own | {"weights": weights})
    with pytest.raises(CheckpointError, match="crops; got 5 samples of 3 crops in "):
        CropLogits.load(path, **own | {"shape": (SAMPLES, CROPS + 1)})
    for weights in (("b", "a"), ("a",), ("a", "b", "c"), ("a", "c")):
        with pytest.raises(CheckpointError) as caught:
            CropLogits.load(path, **own | {"weights": weights})
        assert str(caught.value) == (
            "a run's logits must be of its own checkpoints, samples and crops; got those of other "
            f"checkpoints in {path}. Delete the file: it is computed again, or left out."
        )
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"got SafetensorError: .* Delete the file"):
        CropLogits.load(path, **own)


def test_a_file_of_other_tensors_or_without_checkpoints_is_refused(
    logits: CropLogits, tmp_path: Path
) -> None:
    path = tmp_path / "logits.safetensors"
    save_file({"losses_NK": torch.zeros(SAMPLES, CROPS)}, path)
    with pytest.raises(CheckpointError, match="got the tensors losses_NK in "):
        CropLogits.load(path)
    save_file({name: getattr(logits, name) for name in NAMES}, path)
    with pytest.raises(CheckpointError, match="got no checkpoint in "):
        CropLogits.load(path, weights=("a",))
