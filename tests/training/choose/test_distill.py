import json
import re
import shutil
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
from training.choose import distill as distill_module
from training.choose.config import DistillConfig
from training.config import TrainConfig
from training.data.processes import Process
from training.run.load import evaluate_run
from training.run.state import build_model, fold_rows, training_rows
from training.saved.checkpoint import digest_of, load_weights
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.classify import classify_crops
from training.score.crop_logits import CropLogits

Tiny = Callable[..., TrainConfig]
Train = Callable[..., RunRecord]
QUICK = DistillConfig(epochs=2, batch_size=16, proposer_channels=(4, 8))


def test_the_folds_part_the_split_and_each_trains_on_the_other(opened: ShardFolder) -> None:
    left_out = [fold_rows(opened, fold) for fold in (0, 1)]
    every = list(range(len(opened.reader("train"))))
    assert sorted(np.concatenate(left_out).tolist()) == every
    for fold, rows in enumerate(left_out):
        assert sorted([*rows.tolist(), *training_rows(opened, fold).tolist()]) == every
    assert training_rows(opened, None).tolist() == every


@pytest.fixture(scope="module")
def base(train: Train, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of random crops."""
    paths = RunPaths(folder=tmp_path_factory.mktemp("runs") / "random")
    train(tiny(policy="random", epochs=1), paths.folder)
    return paths


@pytest.fixture(scope="module")
def distill(opened: ShardFolder, alone: Process, base: RunPaths) -> Callable[..., RunRecord]:
    """Distil a run: `distill("map", proposer="map")`."""

    def run(name: str, *, of: RunPaths = base, **options: Any) -> RunRecord:
        return distill_module.distill(
            of, replace(QUICK, **options), shards=opened, workers=1, process=alone,
            paths=RunPaths(folder=base.folder.parent / name),
        )  # fmt: skip

    return run


def test_every_image_is_classified_by_a_classifier_that_has_not_seen_it(
    distill: Callable[..., RunRecord], base: RunPaths, opened: ShardFolder, alone: Process
) -> None:
    distill("crops")
    files = (base.fold(0).last, base.fold(1).last)
    weights = tuple(map(digest_of, files))
    unseen = CropLogits.load(base.out_of_fold, weights=weights, shape=(70, 6))
    assert unseen.labels_N.tolist() == list(opened.reader("train").labels)
    for fold in (0, 1):
        record = load_record(base.fold(fold).record)
        assert record.config.fold == fold
        assert len(record.epochs) == record.config.epochs
        assert record.evaluation is None  # nobody asks for it, and it costs time
        model = build_model(record.config, opened, alone)
        load_weights(base.fold(fold).last, model)
        rows = fold_rows(opened, fold)
        again = classify_crops(model, opened, process=alone, split="train", rows=rows)
        assert torch.equal(again.logits_NKC, unseen.logits_NKC[rows])
        sample = opened.reader("train").read(int(rows[3]))
        crop = torch.from_numpy(np.ascontiguousarray(sample.crops[2].transpose(1, 2, 0)))[None]
        with torch.inference_mode():
            loss = F.cross_entropy(model.eval().logits(crop), torch.tensor([sample.label]))
        torch.testing.assert_close(again.losses_NK[3, 2], loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"proposer": "map", "position_prior": True},
        {"proposer": "joint"},
        {"proposer": "crops", "glimpse_size": 24},
        {"proposer": "map", "candidates": "centre,top-left,full"},
    ],
    ids=str,
)
def test_another_proposer_needs_no_other_classifier(
    options: dict[str, Any], distill: Callable[..., RunRecord], base: RunPaths, alone: Process
) -> None:
    name = "-".join(map(str, options.values()))
    distill(f"first-{name}")
    before = {path: path.stat().st_mtime_ns for path in base.folder.rglob("*") if path.is_file()}
    record = distill(name, **options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert record.config.policy == "distilled"
    assert record.evaluation is not None
    base_record = load_record(base.record)
    assert base_record.evaluation is not None
    every = base_record.evaluation
    alone_always = dict(zip(every.crops, every.top1_crops, strict=True))
    assert record.evaluation.top1_crops == tuple(alone_always[c] for c in record.evaluation.crops)
    assert len(record.evaluation.crops) == (3 if "candidates" in options else 6)
    assert record.evaluation.proposer_macs > 0
    found, again = evaluate_run(
        RunPaths(folder=base.folder.parent / name), shards_path=None, candidates=None,
        checkpoint="last", workers=1, process=alone,
    )  # fmt: skip
    assert (found, again) == (record, record.evaluation)


def test_several_processes_are_refused(
    base: RunPaths, opened: ShardFolder, alone: Process, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        distill_module.distill(
            base, QUICK, shards=opened, paths=RunPaths(folder=tmp_path / "run"),
            process=replace(alone, world_size=2), workers=1,
        )  # fmt: skip
    assert str(caught.value) == (
        "a distillation runs in one process; got 2. Type the same with srp-train in place of "
        "torchrun and its options."
    )
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_distilled_is_refused(
    distill: Callable[..., RunRecord], finished: tuple[RunPaths, RunRecord], base: RunPaths
) -> None:
    with pytest.raises(ConfigError, match=r"or with --policy distilled; got --policy strai"):
        distill("none", of=finished[0])
    distill("twice")
    with pytest.raises(
        ConfigError, match=r"got one in .*twice already. Name another: --experiment NAME"
    ):
        distill("twice")
    with pytest.raises(ConfigError, match=r"--candidates must be in the shards; got 'middle', but"):
        distill("none", candidates="middle")
    with pytest.raises(CheckpointError, match=r"a run must have a record; got none at"):
        distill("none", of=RunPaths(folder=base.folder / "none"))


@pytest.mark.parametrize(
    ("at_step", "fault"),
    [
        (5, "the loss must stay finite; got nan at step 2 of epoch 2 of the proposer's fit."),
        (8, r"weights must stay finite; got NaN or infinity in .* at step 4 of epoch 2 of the "),
    ],
    ids=["a loss", "the last step's weights"],
)
def test_a_fit_that_diverges_ends_in_one_line_and_writes_nothing(
    at_step: int, fault: str, distill: Callable[..., RunRecord], base: RunPaths,
    srp_train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    distill(f"healthy-{at_step}")
    before = {path: path.read_bytes() for path in base.folder.parent.rglob("*") if path.is_file()}
    real, steps = torch.optim.AdamW.step, [0]

    def breaking(optimizer: torch.optim.AdamW) -> None:
        real(optimizer)
        steps[0] += 1
        if steps[0] == at_step:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", breaking)
    result = srp_train(
        "distill", base.folder, "--output", base.folder.parent, "--experiment", "broken",
        "--epochs", 2, "-b", 16, "--proposer-channels", "4,8", "-j", 1, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {fault}", line)
    assert line.endswith("Nothing of it is saved. Fit it again with a lower --proposer-lr.")
    after = {path: path.read_bytes() for path in base.folder.parent.rglob("*") if path.is_file()}
    assert after == before


def test_a_run_that_chooses_is_refused_by_that_whatever_its_policy_was_given(tiny: Tiny) -> None:
    base = tiny(policy="straight-through", tau_start=0.5, random_epochs=0, balance=0.2)
    config = distill_module.distilled_config(base, DistillConfig(balance=0.1))
    assert (config.policy, config.tau_start, config.balance) == ("distilled", 1.0, 0.1)


def test_candidates_that_the_classifier_was_not_trained_on_are_refused(
    train: Train, tiny: Tiny, distill: Callable[..., RunRecord], tmp_path: Path
) -> None:
    few = RunPaths(folder=tmp_path / "few")
    train(tiny(policy="random", epochs=1, candidates="five"), few.folder)
    with pytest.raises(ConfigError, match=r"some of the run's; got full, .* Name some of top-left"):
        distill("none", of=few, candidates="full,centre")


def test_what_cannot_be_fitted_is_refused_before_anything_is_trained(
    train: Train, tiny: Tiny, distill: Callable[..., RunRecord], opened: ShardFolder, tmp_path: Path
) -> None:
    run = RunPaths(folder=tmp_path / "fresh")
    train(tiny(policy="random", epochs=1), run.folder)
    before = sorted(run.folder.rglob("*"))
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"candidates": "middle"}, r"--candidates must be in the shards; got 'middle'"),
        ({"glimpse_size": 1000}, r"glimpse size must fit the crop; got --glimpse-size 1000"),
        ({"glimpse_size": 2}, r"a map must have at least 2 x 2 cells, or every crop has the same"),
        (
            {"glimpse_size": 2, "proposer": "crops"},
            r"a glimpse must be large enough for the proposer; got",
        ),
    )
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            distill("none", of=run, **options)
    fields = json.loads(run.record.read_text())
    fields["data"]["fingerprint"] = "0" * 64
    run.record.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"on the shards that it was trained on, because its"):
        distill("none", of=run)
    assert sorted(run.folder.rglob("*")) == before


def test_logits_of_other_weights_are_refused_and_made_again_once_deleted(
    base: RunPaths, distill: Callable[..., RunRecord], train: Train, tiny: Tiny, tmp_path: Path
) -> None:
    distill("before-the-copy")
    run = RunPaths(folder=shutil.copytree(base.folder, tmp_path / "run"))
    shutil.rmtree(run.fold(1).folder)
    first = distill("from-the-copy", of=run)
    other = RunPaths(folder=tmp_path / "other")
    train(tiny(policy="random", epochs=1, seed=7), other.folder)
    for path in (other.record, other.last, other.best):
        shutil.copyfile(path, run.folder / path.name)
    with pytest.raises(CheckpointError, match=rf"got those of other checkpoints in {run.logits}"):
        distill("of-the-other", of=run)
    run.logits.unlink()
    second = distill("of-the-other", of=run)
    assert first.evaluation is not None
    assert second.evaluation is not None
    assert second.evaluation.top1_crops == tuple(load_record(other.record).evaluation.top1_crops)  # type: ignore[union-attr]
    shutil.copyfile(other.last, run.fold(0).last)
    with pytest.raises(CheckpointError, match=r"got those of other checkpoints in .*out_of_fold"):
        distill("fold-of-another", of=run)


def test_the_command_prints_the_figures(
    base: RunPaths, srp_train: Callable[..., Any], distill: Callable[..., RunRecord]
) -> None:
    distill("before")
    result = srp_train(
        "distill", base.folder, "--output", base.folder.parent, "--experiment", "typed",
        "--epochs", 1, "-b", 16, "--proposer-channels", "4", "-j", 1, "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "how often each crop is chosen" in result.stdout
    assert load_record(base.folder.parent / "typed/record.json").config.policy == "distilled"


def test_two_fits_to_one_run_have_names_that_tell_them_apart(
    base: RunPaths, distill: Callable[..., RunRecord], srp_train: Callable[..., Any], tmp_path: Path
) -> None:
    distill("to have its losses")
    quick = ("--output", tmp_path, "-j", 1, "--device", "cpu")
    changes = ((), ("--position-prior",), ("--glimpse-size", 24), ("--candidates", "five"),
               ("--seed", 7))  # fmt: skip
    for changed in changes:
        result = srp_train("distill", base.folder, *quick, *changed)
        assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "distilled-map-s42", "distilled-map-prior-s42", "distilled-map-g24-s42",
        "distilled-map-five-s42", "distilled-map-s7",
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    again = srp_train("distill", base.folder, *quick)
    assert again.exit_code == 2
    assert again.stderr.endswith("Name another: --experiment NAME.\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "distilled-map"),
        ({"proposer": "crops", "seed": 3}, "distilled-crops"),
        ({"candidates": "full, centre"}, "distilled-map-full-centre"),
        ({"proposer": "map", "position_prior": True, "candidates": "full+five", "glimpse_size": 64},
         "distilled-map-prior-full+five-g64"),
        ({"proposer_channels": (4, 8), "proposer_lr": 0.1, "epochs": 3, "batch_size": 16},
         "distilled-map-c4-8-lr0.1-e3-b16"),
        ({"balance": 0.2, "weight_decay": 0.0, "vflip": 0.0},
         "distilled-map-balance0.2-wd0.0-vflip0.0"),
    ],
)  # fmt: skip
def test_an_arm_is_named_by_what_is_not_the_default(options: dict[str, Any], name: str) -> None:
    assert DistillConfig(**options).arm == name
