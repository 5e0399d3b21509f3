"""The chooser's four stages in one run: what they leave, and what stops and resumes in each."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from breaking import forked
from click.testing import Result
from safetensors.torch import load_file
from torch import Tensor

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress
from training.choose import distill as distill_module
from training.choose import method, out_of_fold
from training.choose.config import DistillConfig
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process
from training.data.shards import Batch
from training.model.classifier import StepOutput
from training.model.estimators import gumbel_noise
from training.run import train as train_module
from training.run.load import evaluate_run
from training.run.state import RunState, build_state, fold_rows, training_rows
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.choices import mirrored_choices
from training.score.crop_logits import CropLogits

Tiny = Callable[..., TrainConfig]
SrpTrain = Callable[..., Result]
STAGED = {
    "policy": "distilled", "epochs": 4, "explore_epochs": 2, "fit_epochs": 3, "vflip": 0.5,
    "workers": 1,
}  # fmt: skip
STAGES = (
    "explore, half 1 of 2", "explore, half 2 of 2", "judge, half 1 of 2", "judge, half 2 of 2",
    "fit", "exploit", "scoring every crop",
)  # fmt: skip


class Noted(Progress):
    """Keeps where a run was, and does something when one stage has told of its last step."""

    def __init__(self, stage: str = "", act: Callable[[], None] = lambda: None) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.events: list[tuple[str, str]] = []
        self._stage, self._act = stage, act

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        self.told.append((stage, done, total))
        if (stage, done) == (self._stage, total):
            self._act()

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        self.events.append((name, text))

    @property
    def whole(self) -> list[tuple[int, int]]:
        """Where all stages together were."""
        return [(done, total) for stage, done, total in self.told if stage == "all stages"]


def interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Watched:
    """A run, and what happened in it."""

    config: TrainConfig
    paths: RunPaths
    record: RunRecord
    progress: Noted
    steps: list[tuple[TrainConfig, Batch]]
    judged: list[set[int]]
    fitted: dict[str, Tensor]
    seconds: float


@pytest.fixture(scope="module")
def staged(opened: ShardFolder, alone: Process) -> Callable[..., RunRecord]:
    """Train in stages: `staged(config, folder, resume=True)`."""

    def run(config: TrainConfig, folder: Path, **options: Any) -> RunRecord:
        paths = RunPaths(folder=folder)
        return method.train(
            config, **{"shards": opened, "paths": paths, "process": alone} | options
        )

    return run


@pytest.fixture(scope="module")
def unbroken(
    staged: Callable[..., RunRecord], tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    """A run of four stages. Only read it."""
    config, paths = tiny(**STAGED), RunPaths(folder=tmp_path_factory.mktemp("runs") / "unbroken")
    steps: list[tuple[TrainConfig, Batch]] = []
    judged: list[set[int]] = []
    fitted: dict[str, Tensor] = {}
    step, classify, fit = (
        train_module.train_step, out_of_fold.classify_crops, method.fit_to_losses
    )  # fmt: skip

    def noted_step(state: RunState, batch: Batch, *, step_: Any = step, step: int) -> StepOutput:
        # The pixels of a batch are overwritten by a later one.
        kept = Batch(None, None, None, batch.glimpses_BLSS, batch.labels_B, batch.indices_B.clone())
        steps.append((state.config, kept))
        output: StepOutput = step_(state, batch, step=step)
        return output

    def noted_classify(*args: Any, rows: Any, **options: Any) -> CropLogits:
        judged.append(set(rows.tolist()))
        return classify(*args, rows=rows, **options)

    def noted_fit(model: Any, *args: Any, **options: Any) -> list[float]:
        errors = fit(model, *args, **options)
        weights = model.proposer.state_dict().items()
        fitted.update((name, tensor.clone()) for name, tensor in weights)
        return errors

    progress, started = Noted(), time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_step", noted_step)
        patch.setattr(out_of_fold, "classify_crops", noted_classify)
        patch.setattr(method, "fit_to_losses", noted_fit)
        record = staged(config, paths.folder, progress=progress)
    seconds = time.monotonic() - started
    return Watched(config, paths, record, progress, steps, judged, fitted, seconds)


def losses_of(record: RunRecord) -> list[Any]:
    """Give all figures of a record but the times."""
    stages = [
        (s.name, s.errors, [[(e.train_loss, e.train_top1) for e in curve] for curve in s.curves])
        for s in record.stages
    ]
    return [stages, [(e.train_loss, e.train_top1, e.val_top1) for e in record.epochs]]


def assert_equal_runs(paths: RunPaths, other: RunPaths) -> None:
    for file in ("last", "out_of_fold", "logits"):
        first, second = (load_file(getattr(run, file)) for run in (paths, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), file
    ours, theirs = (load_record(run.record) for run in (paths, other))
    assert ours.evaluation == theirs.evaluation
    assert losses_of(ours) == losses_of(theirs)


def test_a_run_of_four_stages_leaves_its_record_and_the_files_of_its_folds(
    unbroken: Watched, opened: ShardFolder, alone: Process
) -> None:
    paths, record = unbroken.paths, unbroken.record
    assert load_record(paths.record) == record
    explore, judge, fit = record.stages
    assert [stage.name for stage in record.stages] == ["explore", "judge", "fit"]
    assert [[epoch.epoch for epoch in curve] for curve in explore.curves] == [[1, 2], [1, 2]]
    assert (judge.curves, judge.errors, fit.curves) == ((), (), ())
    assert len(fit.errors) == 3
    assert np.isfinite(fit.errors).all()
    assert [epoch.epoch for epoch in record.epochs] == [1, 2]
    assert record.evaluation is not None
    assert record.config.proposer == "map"
    # No second is counted twice.
    assert 0 < sum(stage.seconds for stage in record.stages) < record.seconds < unbroken.seconds
    assert {path.name for path in paths.folder.iterdir()} == {
        "record.json", "run.toml", "last.safetensors", "best.safetensors", "logits.safetensors",
        "out_of_fold.safetensors", "half-0", "half-1",
    }  # fmt: skip
    for fold in (0, 1):
        found = load_record(paths.fold(fold).record)
        assert (found.config.policy, found.config.fold, found.evaluation) == ("random", fold, None)
        assert found.epochs == explore.curves[fold]
        assert all(epoch.val_top1 is None for epoch in found.epochs)
    loaded, again = evaluate_run(
        paths, shards_path=None, candidates=None, checkpoint="last", workers=1, process=alone
    )
    assert (loaded, again) == (record, record.evaluation)
    assert again.num_samples == opened.manifest.num_samples("val")


def test_a_classifier_never_learns_from_an_image_that_it_judges(
    unbroken: Watched, opened: ShardFolder
) -> None:
    every = set(range(70))
    assert unbroken.judged == [set(fold_rows(opened, fold).tolist()) for fold in (0, 1)]
    for fold, judged in enumerate(unbroken.judged):
        left_out = load_record(unbroken.paths.fold(fold).record).config.fold
        learnt = {
            row
            for config, batch in unbroken.steps
            if config.fold == left_out
            for row in batch.indices_B.tolist()
        }
        assert learnt
        assert learnt <= every - judged
    own = [batch for config, batch in unbroken.steps if config.fold is None]
    assert {row for batch in own for row in batch.indices_B.tolist()} - unbroken.judged[0]
    assert {row for batch in own for row in batch.indices_B.tolist()} - unbroken.judged[1]


def test_each_half_begins_with_the_same_half_of_a_run_in_stages(
    unbroken: Watched, staged: Callable[..., RunRecord], tmp_path: Path
) -> None:
    config = replace(unbroken.config, initial_checkpoint=str(unbroken.paths.folder), lr=0.0)
    told = Noted()
    staged(config, tmp_path / "run", progress=told)
    for fold in (0, 1):
        ours, theirs = (
            load_file(paths.fold(fold).last)
            for paths in (RunPaths(folder=tmp_path / "run"), unbroken.paths)
        )
        names = [n for n in ours if n.startswith("model.classifier.") and n.endswith("weight")]
        assert names
        assert all(torch.equal(ours[name], theirs[name]) for name in names)  # the rate is 0
    assert "unsound" not in dict(told.events)


def test_halves_that_know_the_classes_judge_without_exploring(
    unbroken: Watched, staged: Callable[..., RunRecord], opened: ShardFolder, tmp_path: Path
) -> None:
    """The logits are those of the other run's halves, and its last classifier goes on."""
    begun = unbroken.paths
    config = replace(
        unbroken.config, initial_checkpoint=str(begun.folder), explore_epochs=None, epochs=1, lr=0.0
    )
    paths = RunPaths(folder=tmp_path / "run")
    record = staged(config, paths.folder)
    assert record.config.explore_epochs == 0
    assert [stage.name for stage in record.stages] == ["judge", "fit"]
    assert len(record.epochs) == 1
    assert not paths.fold(0).folder.exists()
    logits = [load_file(run.out_of_fold) for run in (paths, begun)]
    assert torch.equal(logits[0]["logits_NKC"], logits[1]["logits_NKC"])
    weights = [load_file(run.last) for run in (paths, begun)]
    names = [n for n in weights[0] if n.startswith("model.classifier.") and n.endswith("weight")]
    assert names
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in names)  # the rate is 0


def test_with_mirrors_the_halves_judge_each_crop_both_ways(
    unbroken: Watched, staged: Callable[..., RunRecord], tmp_path: Path
) -> None:
    begun = unbroken.paths
    config = replace(
        unbroken.config, initial_checkpoint=str(begun.folder), explore_epochs=None, epochs=2,
        judge_mirrors=True,
    )  # fmt: skip
    paths = RunPaths(folder=tmp_path / "run")
    staged(config, paths.folder)
    both, one = (load_file(run.out_of_fold)["logits_NKC"] for run in (paths, begun))
    assert not torch.allclose(both.softmax(2), one.softmax(2))
    torch.testing.assert_close(both.logsumexp(2), torch.zeros(both.shape[:2]), atol=1e-5, rtol=0)
    turned = 2 * both.exp() - one.softmax(2)  # what the mirror alone must have been given
    assert turned.min() > -1e-5
    torch.testing.assert_close(turned.sum(2), torch.ones(both.shape[:2]))


def test_halves_that_are_not_there_are_told_before_the_work(
    unbroken: Watched, staged: Callable[..., RunRecord], tmp_path: Path
) -> None:
    start = str(unbroken.paths.fold(0).folder)
    config = replace(unbroken.config, initial_checkpoint=start, explore_epochs=0)
    with pytest.raises(ConfigError) as caught:
        staged(config, tmp_path / "run")
    assert str(caught.value) == (
        "--explore-epochs 0 needs the halves of --initial-checkpoint, which a run of --policy "
        f"distilled has; got none in {start}. Name such a run, or explore for 1 of --epochs 2 or "
        "more."
    )
    assert not (tmp_path / "run").exists()


def test_a_start_that_may_have_seen_the_judged_images_gets_a_warning(
    unbroken: Watched, staged: Callable[..., RunRecord], tmp_path: Path
) -> None:
    start = str(unbroken.paths.last)
    told = Noted()
    staged(replace(unbroken.config, initial_checkpoint=start), tmp_path / "run", progress=told)
    assert [text for name, text in told.events if name == "unsound"] == [
        f"warning: the classifier in {start} may have seen the images that it will judge, and then "
        "the choice is fitted to losses that are too low. Begin with a run of --policy distilled, "
        "whose halves go on each by itself."
    ]


def test_the_last_stage_keeps_the_fitted_proposer_and_reads_no_glimpse(
    unbroken: Watched, opened: ShardFolder
) -> None:
    weights = load_file(unbroken.paths.last)
    held = {
        name.removeprefix("model.proposer."): tensor
        for name, tensor in weights.items()
        if name.startswith("model.proposer.")
    }
    assert any("running_mean" in name for name in held)
    assert held.keys() == unbroken.fitted.keys()
    assert all(torch.equal(tensor, unbroken.fitted[name]) for name, tensor in held.items())
    before = load_file(unbroken.paths.fold(0).last)
    classifier = [name for name in before if name.startswith("model.classifier.")]
    assert any(not torch.equal(before[name], weights[name]) for name in classifier)
    size = unbroken.config.batch_size
    steps = [len(training_rows(opened, fold)) // size for fold in (0, 1, None)]
    assert len(unbroken.steps) == 2 * sum(steps)  # two epochs of each half, and of the whole
    assert all(batch.glimpses_BLSS is None for _, batch in unbroken.steps)


def test_the_progress_of_all_stages_moves_forward_and_ends_at_its_total(unbroken: Watched) -> None:
    whole = unbroken.progress.whole
    assert whole == sorted(whole)
    assert len({total for _, total in whole}) == 1
    assert whole[-1][0] == whole[-1][1] > 0
    names = [stage for stage, *_ in unbroken.progress.told]
    assert list(dict.fromkeys(names)) == [
        STAGES[0], "all stages", *STAGES[1:6], "validating", STAGES[6],
    ]  # fmt: skip


@pytest.mark.quick("explore, half 2 of 2", "judge, half 1 of 2", "fit", "exploit")
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_stopped_in_a_stage_is_resumed_to_the_same_end(
    stage: str, unbroken: Watched, staged: Callable[..., RunRecord], tmp_path: Path
) -> None:
    config, paths = unbroken.config, RunPaths(folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        staged(config, paths.folder, progress=Noted(stage, interrupt))
    with pytest.raises(ConfigError) as caught:
        staged(config, paths.folder)
    assert str(caught.value) == (
        f"a run must not be overwritten; got one in {paths.folder} already. "
        "Add --resume to go on with it, or name another --experiment."
    )
    with pytest.raises(ConfigError) as caught:
        staged(replace(config, lr=0.03), paths.folder, resume=True)
    assert str(caught.value).startswith(
        "--resume must go on with the run's own options; got --lr 0.02 there, 0.03 asked for in "
        f"{paths.folder}"
    )
    progress = Noted()
    record = staged(config, paths.folder, resume=True, progress=progress)
    assert record == load_record(paths.record)
    assert_equal_runs(paths, unbroken.paths)
    assert progress.whole == sorted(progress.whole)
    assert progress.whole[-1] == unbroken.progress.whole[-1]
    assert {name for name, *_ in progress.told} >= set(STAGES[STAGES.index(stage) :])
    assert not {name for name, *_ in progress.told} & set(STAGES[: STAGES.index(stage)]) - {
        "judge, half 1 of 2", "fit",
    }  # fmt: skip


@pytest.mark.sweep  # a program for each kill
def test_a_run_that_is_killed_in_every_stage_ends_as_one_that_never_was(
    unbroken: Watched, staged: Callable[..., RunRecord], tmp_path: Path
) -> None:
    config, paths = unbroken.config, RunPaths(folder=tmp_path / "run")
    for stage in STAGES:

        def train(stage: str = stage) -> None:
            torch.set_num_threads(1)  # a pool of threads does not survive the fork
            signal.alarm(60)
            staged(config, paths.folder, resume=True, progress=Noted(stage, kill))

        assert forked(train) == -signal.SIGKILL, stage
    staged(config, paths.folder, resume=True)
    assert_equal_runs(paths, unbroken.paths)


def test_a_finished_run_is_given_as_it_is(
    unbroken: Watched, staged: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "build_state", None)
    assert staged(unbroken.config, unbroken.paths.folder, resume=True) == unbroken.record


@pytest.mark.parametrize(
    ("kind", "candidates"),
    [
        ("map", "full+five"),
        ("map", "top-left,bottom-left,centre,full"),  # some have no counterpart in a mirrored image
        ("joint", "full+five"),
    ],
)
def test_the_crop_that_is_chosen_ahead_is_the_one_that_the_step_would_choose(
    kind: str, candidates: str, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    options = {"proposer": kind, "candidates": candidates, "position_prior": True}
    config = tiny(**STAGED | options)
    state = build_state(config, opened, alone)
    model = state.model
    assert model.proposer is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # so that the scores of places differ
        for weights in model.proposer.parameters():
            weights += 0.2 * torch.randn(weights.shape, generator=generator)
    choices_NWK = mirrored_choices(model, opened, alone, num_ways=4)
    state = replace(state, choices_NWK=choices_NWK)
    torch.testing.assert_close(choices_NWK.exp().sum(2), torch.ones(70, 4))
    assert not torch.equal(choices_NWK[:, 0], choices_NWK[:, 3])
    rows = np.arange(0, 70, 3)
    (batch,) = model.reader(opened, "train", alone).batches([rows])
    for way in range(4):
        flips = torch.full((len(rows),), bool(way & 1)), torch.full((len(rows),), bool(way & 2))
        draws = augment.Draws(*flips, torch.zeros(len(rows), 2, dtype=torch.int64))
        noise_BK = gumbel_noise((len(rows), len(model.candidates)), generator)
        chosen_B = state.chosen_ahead(batch, draws, noise_BK, chooses=True)
        assert batch.glimpses_BLSS is not None
        looked = augment.mirror(batch.glimpses_BLSS, draws, state.glimpse_counterparts)
        with torch.no_grad():
            scores_BK = model.eval().proposer(looked, draws.ways_B).scores_BK  # type: ignore[misc]
        assert chosen_B is not None
        assert torch.equal(chosen_B, (scores_BK + noise_BK).argmax(1))
        assert len(set(chosen_B.tolist())) > 2


def test_a_step_of_a_held_proposer_without_its_choices_is_our_own_mistake(
    opened: ShardFolder, alone: Process, tiny: Tiny, tmp_path: Path
) -> None:
    state = build_state(tiny(**STAGED), opened, alone)
    with pytest.raises(RuntimeError, match="whose choices are not known"):
        train_module.train_step(state, next(iter(state.batches)), step=0)
    with pytest.raises(RuntimeError, match="a proposer that was not fitted"):
        train_module.fit(
            tiny(**STAGED), shards=opened, paths=RunPaths(folder=tmp_path / "run"), process=alone
        )
    assert not (tmp_path / "run").exists()


def test_another_proposer_is_fitted_to_the_logits_of_such_a_run(
    unbroken: Watched, opened: ShardFolder, alone: Process, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(method, "fit", None)
    monkeypatch.setattr(out_of_fold, "classify_crops", None)
    monkeypatch.setattr(distill_module, "classify_crops", None)
    files = {p: p.stat().st_mtime_ns for p in unbroken.paths.folder.rglob("*")}
    record = distill_module.distill(
        unbroken.paths, DistillConfig(proposer="crops", epochs=2, batch_size=16), shards=opened,
        paths=RunPaths(folder=tmp_path / "crops"), process=alone, workers=1,
    )  # fmt: skip
    assert {p: p.stat().st_mtime_ns for p in unbroken.paths.folder.rglob("*")} == files
    assert (record.config.policy, record.config.proposer) == ("distilled", "crops")
    assert (record.config.fit_epochs, len(record.stages[0].errors)) == (2, 2)
    assert record.evaluation is not None
    assert unbroken.record.evaluation is not None
    assert record.evaluation.top1_crops == unbroken.record.evaluation.top1_crops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--explore-epochs", 0), "--explore-epochs 0 needs --initial-checkpoint, a run of "
                                  "--policy distilled whose halves judge the images; got none. "
                                  "Name one, or raise --explore-epochs."),
        (("--epochs", 1), "--explore-epochs must be 1 or more, and no more than --epochs; got 0 of "
                          "1. Use --epochs 2 or more."),
        (("--explore-epochs", 2), "--explore-epochs must be fewer than --epochs, or the classifier "
                                  "never sees a choice; got 2 of 2. Lower it."),
        (("--explore-epochs", 3), "--explore-epochs must be 1 or more, and no more than --epochs; "
                                  "got 3 of 2. Use --epochs 2 or more."),
        (("-b", 40), "--policy distilled trains on half of the images at a time, which must fill a "
                     "step; got --batch-size 40 on 1 processes for 29 images. Lower "
                     "--batch-size, or build more images."),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    options: tuple[object, ...], message: str, scene_shards: Path, srp_train: SrpTrain,
    tmp_path: Path,
) -> None:  # fmt: skip
    result = srp_train("from", scene_shards, "--output", tmp_path / "runs", *QUICK, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {message}"]
    assert not list((tmp_path / "runs").rglob("*"))


QUICK = (
    "--model", "test_resnet", "--epochs", 2, "-b", 16, "--fit-epochs", 1, "--no-amp", "-j", 1,
    "--device", "cpu",
)  # fmt: skip


def test_shards_that_offer_nothing_to_choose_are_refused(
    opened: ShardFolder, five_shards: Path, staged: Callable[..., RunRecord], tiny: Tiny,
    tmp_path: Path,
) -> None:  # fmt: skip
    manifest = replace(opened.manifest, classes=("arrow",), class_names=("arrow",))
    with pytest.raises(ConfigError) as caught:
        staged(tiny(**STAGED), tmp_path / "run", shards=replace(opened, manifest=manifest))
    assert str(caught.value) == (
        "--policy distilled needs at least two classes, or no crop is better than another; got 1 "
        f"in {opened.place}. Build shards of more classes."
    )
    with pytest.raises(ConfigError) as caught:
        staged(tiny(**STAGED), tmp_path / "run", shards=ShardFolder.open(five_shards))
    assert str(caught.value) == (
        "--proposer map looks at the glimpse of the whole canvas, 'full'; got shards with "
        "top-left, top-right, bottom-left, bottom-right, centre. Build shards with --candidates "
        "full+five."
    )
    assert not (tmp_path / "run").exists()


def test_the_command_trains_in_stages_by_default_and_says_what_the_choice_scores(
    scene_shards: Path, srp_train: SrpTrain, tmp_path: Path
) -> None:
    result = srp_train("from", scene_shards, "--output", tmp_path, *QUICK)
    assert result.exit_code == 0, result.output
    *_, said, place = result.stdout.splitlines()
    record = load_record(tmp_path / "distilled-s42/record.json")
    assert record.evaluation is not None
    assert said.startswith(f"The chosen crop: {record.evaluation.top1:.1f} % right; with the same ")
    assert "the whole image" in said
    assert place == f"run: {tmp_path / 'distilled-s42'}"
    assert (record.config.num_explored, record.config.own_epochs, len(record.epochs)) == (1, 1, 1)
