from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import ShardFolder
from pipeline.common.errors import CheckpointError, ConfigError
from pipeline.common.progress import Progress
from pipeline.format.crops import FIVE
from pipeline.read.collate import BatchSpec
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process
from training.data.shards import BatchReader
from training.model.policies import POLICIES
from training.report.terminal import evaluation_text
from training.run.load import evaluate_run
from training.run.state import build_model
from training.saved.folder import RunPaths
from training.saved.record import RunRecord
from training.score.classify import classify_crops, evaluate_choice
from training.score.crop_logits import NAMES
from training.score.metrics import Evaluation, final_prediction, summarise

Tiny = Callable[..., TrainConfig]


def ignore(*_: object) -> None:
    pass


class Noted(Progress):
    """Keeps how far each stage was."""

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        self.stages.setdefault(stage, []).append((done, total))


@pytest.fixture
def rescore(alone: Process) -> Callable[..., tuple[RunRecord, Evaluation]]:
    def run(paths: RunPaths, **options: Any) -> tuple[RunRecord, Evaluation]:
        defaults = {"shards_path": None, "candidates": None, "checkpoint": "last", "workers": 1}
        return evaluate_run(paths, process=alone, **{**defaults, **options})

    return run


def test_they_equal_one_image_and_one_crop_at_a_time(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(), opened, alone)
    shown = Noted()
    logits = classify_crops(model, opened, process=alone, progress=shown)
    assert shown.stages == {"scoring every crop": [(29, 29)]}
    content = BatchSpec(candidates=model.candidates, glimpse_px=16)
    reader = BatchReader(opened.reader("val"), content, workers=1, device=alone.device)
    assert model.proposer is not None
    with torch.inference_mode():
        for index, batch in enumerate(reader.batches(np.arange(29)[:, None])):
            assert batch.crops_BKHWC is not None
            logits_KC = torch.cat([model.logits(crop) for crop in batch.crops_BKHWC.unbind(1)])
            losses_K = F.cross_entropy(logits_KC, batch.labels_B.expand(6), reduction="none")
            chances = model.proposer(batch.glimpses_BLSS).probabilities_BK[0]
            assert logits.labels_N[index] == batch.labels_B[0]
            assert torch.equal(logits.predicted_NK[index], logits_KC.argmax(1))
            assert logits.averaged_N[index] == logits_KC.softmax(1).mean(0).argmax()
            torch.testing.assert_close(logits.losses_NK[index], losses_K, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(logits.probabilities_NK[index], chances)


def test_a_view_and_its_mirror_have_the_mean_of_their_probabilities(
    opened: ShardFolder, alone: Process, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny(), opened, alone)
    both = classify_crops(model, opened, process=alone, with_mirrors=True).logits_NKC
    plain = classify_crops(model, opened, process=alone).logits_NKC
    cut = augment.cut
    monkeypatch.setattr(augment, "cut", lambda *args, **options: cut(*args, **options).flip(3))
    turned = classify_crops(model, opened, process=alone).logits_NKC
    turned_both = classify_crops(model, opened, process=alone, with_mirrors=True).logits_NKC
    assert not torch.allclose(plain, turned)
    torch.testing.assert_close(both.exp(), (plain.softmax(2) + turned.softmax(2)) / 2)
    torch.testing.assert_close(turned_both, both)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_quick_score_of_a_policy_equals_that_of_its_logits(
    policy: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(policy=policy, epochs=2), opened, alone)
    quick = evaluate_choice(model, opened, process=alone, on_images=ignore)
    logits = classify_crops(model, opened, process=alone)
    hits = final_prediction(logits, policy) == logits.labels_N
    assert quick.top1 == pytest.approx(100 * hits.double().mean().item())


@pytest.mark.parametrize("policy", ["straight-through", "random", "mean"])
def test_two_evaluations_are_equal_whatever_torchs_own_seed(
    policy: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(policy=policy), opened, alone)
    torch.manual_seed(1)
    first = classify_crops(model, opened, process=alone)
    torch.manual_seed(2)
    second = classify_crops(model, opened, process=alone)
    assert summarise(first, model) == summarise(second, model)
    for name in NAMES:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize(("policy", "name"), [("whole", "full"), ("centre", "centre")])
def test_a_fixed_policy_scores_as_its_crop_always_does(
    policy: str, name: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    model = build_model(tiny(policy=policy), opened, alone)
    found = summarise(classify_crops(model, opened, process=alone), model)
    assert found.top1 == found.top1_crops[found.crops.index(name)]
    assert found.shares[found.crops.index(name)] == 1
    assert found.entropy_of_mean == pytest.approx(0)


def test_the_ranks_rows_add_up_to_the_logits_of_one_process(
    opened: ShardFolder, alone: Process, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny(), opened, alone)
    whole = classify_crops(model, opened, process=alone)
    monkeypatch.setattr("training.score.classify.sum_over_ranks", lambda tensor, _: tensor)
    parts = [
        classify_crops(model, opened, process=replace(alone, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for name in NAMES:
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name))


def test_a_run_scored_again_gives_the_figures_of_its_record(
    finished: tuple[RunPaths, RunRecord], rescore: Callable[..., tuple[RunRecord, Evaluation]]
) -> None:
    paths, record = finished
    assert rescore(paths) == (record, record.evaluation)
    assert rescore(paths, checkpoint="best")[1].num_samples == 29


def test_other_candidates_can_be_scored(
    finished: tuple[RunPaths, RunRecord], rescore: Callable[..., tuple[RunRecord, Evaluation]]
) -> None:
    paths, record = finished
    _, found = rescore(paths, candidates="five")
    assert found.crops == FIVE
    assert record.evaluation is not None
    assert found.top1_crops == record.evaluation.top1_crops[1:]


def test_a_run_on_five_crops_is_scored_on_five_where_shards_hold_more(
    five_shards: Path,
    scene_tensors: Path,
    tiny: Tiny,
    train: Callable[..., RunRecord],
    rescore: Callable[..., tuple[RunRecord, Evaluation]],
    tmp_path: Path,
) -> None:
    record = train(tiny(), tmp_path / "run", shards=ShardFolder.open(five_shards))
    _, found = rescore(RunPaths(folder=tmp_path / "run"), shards_path=scene_tensors)
    assert found == record.evaluation
    assert found.crops == FIVE


def test_shards_without_the_runs_candidates_are_refused(
    finished: tuple[RunPaths, RunRecord],
    five_shards: Path,
    rescore: Callable[..., tuple[RunRecord, Evaluation]],
) -> None:
    with pytest.raises(ConfigError, match=r"--candidates must be in the shards; got 'full\+five'"):
        rescore(finished[0], shards_path=five_shards)


def test_shards_of_another_spec_are_refused(
    finished: tuple[RunPaths, RunRecord],
    small_shards: Path,
    rescore: Callable[..., tuple[RunRecord, Evaluation]],
) -> None:
    with pytest.raises(CheckpointError, match="canvas_size 48 in training, 40 here; crop_size 32"):
        rescore(finished[0], shards_path=small_shards)


def test_shards_that_were_moved_are_asked_for(
    finished: tuple[RunPaths, RunRecord],
    rescore: Callable[..., tuple[RunRecord, Evaluation]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths, record = finished
    moved = replace(record, shards="moved/away")
    monkeypatch.setattr("training.run.load.load_record", lambda _: moved)
    with pytest.raises(CheckpointError) as caught:
        rescore(paths)
    assert str(caught.value) == (
        "a run's shards must be at the path in its record; got none at moved/away (a relative path "
        "starts at the current folder). Name their folder with --shards."
    )


def test_a_class_name_cannot_speak_to_the_terminal(
    finished: tuple[RunPaths, RunRecord],
) -> None:
    _, record = finished
    assert record.evaluation is not None
    names = ["\x1b[2Jgone", *(f"class {number}" for number in range(1, 10))]
    text = evaluation_text(record.evaluation, tuple(names))
    assert "\x1b" not in text
    assert "\\x1b[2Jgone" in text
