import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline import ShardFolder, ShardReader
from pipeline.common.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    PreemptedRunError,
    StoppedRunError,
)
from pipeline.common.progress import Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.data.shards import Batch
from training.model.classifier import StepOutput
from training.model.proposer import MapProposer, Proposal
from training.run import resume
from training.run import train as train_module
from training.run.state import RunState, build_model, build_state
from training.run.train import train_step
from training.saved import folder
from training.saved.checkpoint import load_weights, read_meta
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.choices import mirrored_choices
from training.score.classify import classify_crops
from training.score.crop_logits import NAMES, CropLogits

Train = Callable[..., RunRecord]
Tiny = Callable[..., TrainConfig]


class Killed(BaseException):
    """What stops a run in these tests, as a kill would."""


class KillAfter(Progress):
    """Kill a run after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        if (name, fields["epoch"]) == ("epoch", self.epoch):
            raise Killed


def without_times(record: RunRecord) -> RunRecord:
    epochs = (
        replace(epoch, images_per_s=0.0, seconds=0.0, waited_s=0.0) for epoch in record.epochs
    )
    # Checkpoints hold the options of the machine; their tensors are compared by themselves.
    return replace(record, name="", seconds=0.0, epochs=tuple(epochs), last="", best="")


def assert_same_tensors(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "expected", "num_draws": 2, "opt": "adamw", "lr": 1e-3, "sched": "cosine"},
        {"policy": "blend", "sched": "step", "warmup_epochs": 1, "amp": True, "clip_grad": 1.0},
        {"policy": "centre", "opt": "lamb", "lr": 1e-3},  # it keeps a tensor in its groups
    ],
    ids=["straight-through", "expected", "blend", "centre"],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    options: dict[str, Any], tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    config = tiny(epochs=3, **options)
    unbroken, broken = RunPaths(folder=tmp_path / "a"), RunPaths(folder=tmp_path / "b")
    whole = train(config, unbroken.folder)
    with pytest.raises(Killed):
        train(config, broken.folder, progress=KillAfter(1))
    assert read_meta(broken.last).epoch == 1
    resumed = train(replace(config, workers=1), broken.folder, resume=True)
    assert without_times(resumed) == without_times(whole)
    for file in ("last", "best", "logits"):
        assert_same_tensors(getattr(broken, file), getattr(unbroken, file))


@pytest.mark.parametrize(("hflip", "vflip"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("proposer", ["map", "crops", "joint"])
def test_a_step_scores_a_mirrored_crop_without_a_counterpart_by_what_it_shows_and_its_own_prior(
    proposer: str, hflip: float, vflip: float, opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    config = tiny(
        proposer=proposer, candidates="top-left,centre", position_prior=True, hflip=hflip,
        vflip=vflip,
    )  # fmt: skip
    state = build_state(config, opened, alone)
    chooser = state.model.proposer
    assert chooser is not None
    assert chooser.prior is not None
    with torch.no_grad():
        chooser.prior.copy_(torch.arange(6.0))
    prior_K = chooser.prior.detach().clone()[list(opened.crop_layout.indices("top-left,centre"))]
    batch = next(iter(state.batches))
    assert batch.glimpses_BLSS is not None
    axes = [axis for axis, chance in ((3, hflip), (2, vflip)) if chance]
    shown_BLSS = batch.glimpses_BLSS.flip(axes)
    left, upper = 16 * int(hflip), 16 * int(vflip)
    told: list[tuple[Tensor, Tensor]] = []

    def note(_: object, given: tuple[Tensor, ...], proposal: Proposal) -> None:
        assert torch.equal(given[0], shown_BLSS)
        if isinstance(chooser, MapProposer):
            map_BMN = chooser.saliency(shown_BLSS[:, 0].float() / 255)
            large = map_BMN.repeat_interleave(12, 1).repeat_interleave(12, 2)  # to the canvas
            wanted_BK = torch.stack(
                [
                    large[:, upper : upper + 32, left : left + 32].mean((1, 2)),
                    large[:, 8:40, 8:40].mean((1, 2)),
                ],
                1,
            )
        else:
            wanted_BK = chooser.score_glimpses(shown_BLSS.float() / 255, None)
        told.append((proposal.scores_BK, wanted_BK + prior_K))

    chooser.register_forward_hook(note)
    train_step(state, batch, step=0)
    ((scores_BK, wanted_BK),) = told
    torch.testing.assert_close(scores_BK, wanted_BK)


@pytest.mark.parametrize(
    ("rates", "is_clipped"),
    [
        ({"proposer_lr": 0.0, "initial_checkpoint": "there"}, (True, False)),
        ({"lr": 0.0, "proposer_lr": 0.1}, (False, True)),
        ({"proposer_lr": 0.1}, (True, True)),
        ({}, (True, True)),
    ],
)
def test_the_norm_that_is_clipped_is_of_the_weights_that_are_trained(
    rates: dict[str, Any],
    is_clipped: tuple[bool, bool],
    opened: ShardFolder,
    alone: Process,
    tiny: Tiny,
) -> None:
    state = build_state(tiny(clip_grad=1e-3, balance=5.0, **rates), opened, alone)
    if state.config.chooses_ahead:
        choices_NWK = mirrored_choices(state.model, opened, alone, num_ways=2)
        state = replace(state, choices_NWK=choices_NWK)
    parts = (state.model.classifier, state.model.proposer)
    norms: list[float] = []

    def note(*_: object) -> None:
        clipped = [part for part, counts in zip(parts, is_clipped, strict=True) if part and counts]
        grads = [w.grad for part in clipped for w in part.parameters() if w.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    state.optimizer.register_step_pre_hook(note)
    train_step(state, next(iter(state.batches)), step=0)
    assert norms == pytest.approx([1e-3], rel=1e-4)


def signal_at(
    monkeypatch: pytest.MonkeyPatch, at_step: int, number: signal.Signals = signal.SIGTERM
) -> None:
    """Send this process a signal in the middle of a step, counted from 0 over the run."""
    real = train_module.train_step

    def signalled(state: RunState, batch: Batch, *, step: int) -> StepOutput:
        if step == at_step:
            signal.raise_signal(number)
        return real(state, batch, step=step)

    monkeypatch.setattr(train_module, "train_step", signalled)


@pytest.mark.parametrize("at_step", range(8))  # four steps an epoch
def test_a_run_that_is_stopped_at_any_step_goes_on_there_bit_for_bit(
    at_step: int, unbroken: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, paths = tiny(epochs=2), RunPaths(folder=tmp_path / "run")
    with monkeypatch.context() as patch:
        signal_at(patch, at_step)
        with pytest.raises(PreemptedRunError) as caught:
            train(config, paths.folder)
    epochs, last_step = divmod(at_step, 4)
    steps = last_step + 1
    if at_step == 7:  # nothing is left but the logits, without which the epoch is saved
        epochs, steps = 2, 0
    where = f"step {steps} of epoch {epochs + 1}" if steps else f"the end of epoch {epochs}"
    assert str(caught.value) == f"stopped at {where}, and saved, in {paths.folder}."
    meta = read_meta(paths.last)
    assert (meta.epoch, meta.part.step if meta.part else 0) == (epochs, steps)
    with monkeypatch.context() as patch:
        real, seen = train_module.train_step, []
        patch.setattr(
            train_module, "train_step", lambda *a, **k: (seen.append(k), real(*a, **k))[1]
        )
        resumed = train(replace(config, workers=1), paths.folder, resume=True)
    assert len(seen) == 8 - (at_step + 1)
    whole_paths, whole = unbroken
    assert without_times(resumed) == without_times(whole)
    for file in ("last", "best", "logits"):
        assert_same_tensors(getattr(paths, file), getattr(whole_paths, file))


@pytest.fixture(scope="module")
def unbroken(
    train: Train, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunPaths, RunRecord]:
    paths = RunPaths(folder=tmp_path_factory.mktemp("unbroken") / "run")
    return paths, train(tiny(epochs=2), paths.folder)


def test_a_run_that_is_stopped_again_and_again_ends_as_an_unbroken_one(
    unbroken: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, paths = tiny(epochs=2), RunPaths(folder=tmp_path / "run")
    for at_step in range(8):
        with monkeypatch.context() as patch:
            signal_at(patch, at_step, signal.SIGINT)
            with pytest.raises(StoppedRunError) as caught:
                train(config, paths.folder, resume=True)
        assert caught.value.exit_status == 130
    resumed = train(config, paths.folder, resume=True)
    assert without_times(resumed) == without_times(unbroken[1])
    assert_same_tensors(paths.last, unbroken[0].last)


def test_a_stop_when_it_has_validated_keeps_the_epoch(
    unbroken: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    config, paths = tiny(epochs=2), RunPaths(folder=tmp_path / "run")

    class Stop(Progress):
        def update(self, stage: str, *_: object) -> None:
            if stage == "validating":
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(PreemptedRunError, match="stopped at the end of epoch 1, and saved"):
        train(config, paths.folder, progress=Stop())
    meta = read_meta(paths.last)
    assert (meta.epoch, meta.part) == (1, None)
    resumed = train(config, paths.folder, resume=True)
    assert without_times(resumed) == without_times(unbroken[1])
    assert_same_tensors(paths.last, unbroken[0].last)


def test_a_second_ctrl_c_interrupts_at_once(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = train_module.train_step, []

    def signalled(state: RunState, batch: Batch, *, step: int) -> StepOutput:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            steps.append(number)
            signal.raise_signal(number)
        return real(state, batch, step=step)

    monkeypatch.setattr(train_module, "train_step", signalled)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run")
    assert len(steps) == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_no_signal_is_noted_on_another_thread(tiny: Tiny, train: Train, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, tiny(), tmp_path / "run").result().evaluation is not None


def test_a_kill_between_record_and_checkpoint_costs_one_epoch_and_no_more(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, paths = tiny(epochs=3), RunPaths(folder=tmp_path / "b")
    whole = train(config, tmp_path / "a")
    real = resume.write_file

    def kill_in_second(path: Path, data: bytes) -> None:
        if len(load_record(paths.record).epochs) == 2:
            raise Killed
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write_file", kill_in_second)
        with pytest.raises(Killed):
            train(config, paths.folder)
    assert len(load_record(paths.record).epochs) == 2
    assert read_meta(paths.last).epoch == 1
    assert without_times(train(config, paths.folder, resume=True)) == without_times(whole)


def test_a_finished_run_is_not_trained_again(
    finished: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "build_state", None)
    paths, record = finished
    again = train(tiny(epochs=2), paths.folder, resume=True)
    assert again == record == load_record(paths.record)


def test_resuming_what_was_not_begun_begins_it(tiny: Tiny, train: Train, tmp_path: Path) -> None:
    record = train(tiny(policy="centre"), tmp_path / "run", resume=True)
    assert [epoch.epoch for epoch in record.epochs] == [1]


def test_a_run_is_not_overwritten(
    finished: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train
) -> None:
    folder = finished[0].folder
    with pytest.raises(ConfigError) as caught:
        train(tiny(epochs=2), folder)
    assert str(caught.value) == (
        f"a run must not be overwritten; got one in {folder} already. "
        "Add --resume to go on with it, or name another --experiment."
    )


def test_a_run_is_not_resumed_with_other_options(
    finished: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train
) -> None:
    folder = finished[0].folder
    with pytest.raises(ConfigError) as caught:
        train(tiny(epochs=3, batch_size=8, workers=1), folder, resume=True)
    assert str(caught.value) == (
        "--resume must go on with the run's own options; got --epochs 2 there, 3 asked for; "
        f"--batch-size 16 there, 8 asked for in {folder}. "
        "Use the run's options, or name another --experiment."
    )


def test_a_run_is_resumed_by_another_spelling_of_what_it_began_with_and_by_nothing_else(
    finished: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = finished[0].folder
    record = train(tiny(initial_checkpoint=str(folder)), tmp_path / "run")
    monkeypatch.chdir(folder.parent)
    again = train(tiny(initial_checkpoint=folder.name), tmp_path / "run", resume=True)
    assert again == record
    for other in ("", "other"):
        with pytest.raises(ConfigError, match=r"got --initial-checkpoint .* there, .* asked for"):
            train(tiny(initial_checkpoint=other), tmp_path / "run", resume=True)


def test_a_run_is_not_resumed_on_other_images(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, tiny: Tiny, train: Train
) -> None:
    other = replace(opened, manifest=replace(opened.manifest, fingerprint="another"))
    with pytest.raises(
        ConfigError, match=f"got shards of other images or options in {opened.place}"
    ):
        train(tiny(epochs=2), finished[0].folder, resume=True, shards=other)


def test_a_run_is_not_resumed_on_shards_of_another_spec(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, tiny: Tiny, train: Train
) -> None:
    manifest = replace(opened.manifest, spec=replace(opened.manifest.spec, canvas_size=40))
    with pytest.raises(CheckpointError, match="got canvas_size 48 in training, 40 here in "):
        train(
            tiny(epochs=2),
            finished[0].folder,
            resume=True,
            shards=replace(opened, manifest=manifest),
        )


def test_an_unfinished_run_is_resumed_only_with_steps_of_as_many_images(
    tiny: Tiny, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(epochs=2, policy="centre")
    with pytest.raises(Killed):
        train(config, tmp_path / "run", progress=KillAfter(1))
    other = Process(rank=0, world_size=2, device=torch.device("cpu"))
    monkeypatch.setattr(folder, "any_rank", lambda is_so, _: is_so)  # the other is made up
    with pytest.raises(ConfigError) as caught:
        train(config, tmp_path / "run", resume=True, process=other)
    assert str(caught.value) == (
        "--resume must go on with the run's own options; got 16 images a step there, by "
        "--batch-size 16 on 1 processes, and --batch-size 16 on 2 processes now in "
        f"{tmp_path / 'run'}. Use the run's options, or name another --experiment."
    )


def poison(monkeypatch: pytest.MonkeyPatch, at_step: int, *, before: bool) -> None:
    """Turn a weight into a NaN just before or just after a step."""
    real = train_module.train_step

    def poisoned(state: RunState, batch: Batch, *, step: int) -> StepOutput:
        weight = next(state.model.classifier.parameters())
        if step == at_step and before:
            weight.data.fill_(float("nan"))
        output = real(state, batch, step=step)
        if step == at_step and not before:
            weight.data.fill_(float("nan"))
        return output

    monkeypatch.setattr(train_module, "train_step", poisoned)


@pytest.mark.parametrize(
    ("before", "at_step", "message"),
    [
        (True, 5, "the training loss must stay finite; got nan for "),
        (False, 7, "weights must stay finite; got NaN or infinity in classifier."),
    ],
    ids=["a loss", "the last step's weights"],
)
def test_a_nan_never_replaces_a_good_checkpoint(
    before: bool,
    at_step: int,
    message: str,
    opened: ShardFolder,
    alone: Process,
    tiny: Tiny,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, paths = tiny(epochs=3), RunPaths(folder=tmp_path / "run")  # four steps an epoch
    poison(monkeypatch, at_step, before=before)
    with pytest.raises(DivergedError) as caught:
        train(config, paths.folder)
    assert message in str(caught.value)
    assert str(caught.value).endswith(
        f" at step {at_step - 3} of epoch 2. The checkpoint before it is kept. Train again under "
        "another --experiment with a lower --lr or with --clip-grad 1."
    )
    assert read_meta(paths.last).epoch == 1
    assert paths.diverged.exists() == before
    if before:
        keys = json.loads(paths.diverged.read_text())["keys"]
        assert len(keys) == 16
        assert set(keys) <= set(opened.reader("train").keys)
        assert f"for {', '.join(keys[:3])} and 13 more at step" in str(caught.value)
    model = build_model(config, opened, alone)
    load_weights(paths.last, model)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_learning_rate_far_too_high_ends_in_one_error(
    tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="a lower --lr or with --clip-grad 1"):
        train(tiny(epochs=3, lr=1000.0, weight_decay=1000.0), tmp_path / "run")
    assert not RunPaths(folder=tmp_path / "run").last.exists()


def test_the_last_checkpoint_is_what_the_evaluation_used(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, alone: Process
) -> None:
    paths, record = finished
    model = build_model(read_meta(paths.last).config, opened, alone)
    load_weights(paths.last, model)
    logits = classify_crops(model, opened, process=alone)
    stored = CropLogits.load(paths.logits)
    for name in NAMES:
        assert torch.equal(getattr(logits, name), getattr(stored, name)), name
    assert record.evaluation is not None
    assert record.epochs[-1].val_top1 == record.evaluation.top1


def test_equal_configs_give_equal_runs_and_another_seed_another(
    finished: tuple[RunPaths, RunRecord], tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    again = train(tiny(epochs=2, workers=1), tmp_path / "again")
    expected = replace(without_times(finished[1]), config=again.config)
    assert without_times(again) == expected
    other = train(tiny(epochs=2, seed=1), tmp_path / "other")
    assert other.epochs[0].train_loss != again.epochs[0].train_loss


def test_the_progress_counts_every_image_and_ends_where_it_should(
    tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    told: list[tuple[object, ...]] = []

    class Told(Progress):
        def update(self, *now: object) -> None:
            told.append(now)

        def event(self, name: str, /, text: str = "", **fields: object) -> None:
            told.append((name, text, fields["epoch"]))

    record = train(tiny(epochs=3, val_interval=2), tmp_path / "run", progress=Told())
    first, second, _ = record.epochs
    figures = f"loss {first.train_loss:.3f}, top-1 {first.train_top1:.1f} %"
    assert told[0] == ("training", 64, 192, f"epoch 1/3, {figures}")
    line = f"training, epoch 2/3: loss {second.train_loss:.4f}, "
    line += f"train top-1 {second.train_top1:.2f} %, val top-1 {second.val_top1:.2f} %, "
    line += f"{second.images_per_s:.0f} images/s"
    assert second.line("training", 3).startswith(line)
    line = second.line("training", 3)
    assert [now[:3] for now in told[2:]] == [
        ("training", 128, 192), ("validating", 29, 29), ("epoch", line, 2),
        ("training", 192, 192), told[6], ("scoring every crop", 29, 29),
    ]  # fmt: skip
    assert [epoch.val_top1 is None for epoch in record.epochs] == [True, False, False]


def test_training_lowers_the_loss(tiny: Tiny, train: Train, tmp_path: Path) -> None:
    config = tiny(policy="centre", epochs=6, smoothing=0.0, hflip=0.0, shift=0)
    record = train(config, tmp_path / "run")
    assert record.epochs[-1].train_loss < 0.8 * record.epochs[0].train_loss


def test_a_record_whose_checkpoint_is_ahead_of_it_is_refused(
    tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    config, paths = tiny(epochs=3, policy="centre"), RunPaths(folder=tmp_path / "run")
    with pytest.raises(Killed):
        train(config, paths.folder, progress=KillAfter(2))
    fields = json.loads(paths.record.read_text())
    paths.record.write_text(json.dumps(fields | {"epochs": fields["epochs"][:1]}))
    with pytest.raises(ConfigError, match="must agree; got 1 and 2 epochs in "):
        train(config, paths.folder, resume=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_in_bfloat16_what_the_cpu_evaluates_alike(
    opened: ShardFolder, alone: Process, tiny: Tiny, train: Train, tmp_path: Path
) -> None:
    config = tiny(amp=True, device="cuda", policy="expected")
    gpu = Process(rank=0, world_size=1, device=torch.device("cuda", 0))
    paths = RunPaths(folder=tmp_path / "run")
    record = train(config, paths.folder, process=gpu)
    assert record.evaluation is not None
    assert record.evaluation.num_samples == 29
    model = build_model(replace(config, amp=False), opened, alone)
    load_weights(paths.last, model)
    on_cpu = classify_crops(model, opened, process=alone)
    on_gpu = CropLogits.load(paths.logits)
    assert torch.equal(on_cpu.labels_N, on_gpu.labels_N)
    torch.testing.assert_close(on_cpu.losses_NK, on_gpu.losses_NK, atol=0.1, rtol=0.05)
    torch.testing.assert_close(
        on_cpu.probabilities_NK, on_gpu.probabilities_NK, atol=0.02, rtol=0.05
    )
    assert (on_cpu.predicted_NK == on_gpu.predicted_NK).float().mean() > 0.9


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor], part: str) -> None:
    weights = [name for name in one if name.startswith(part) and name.endswith(".weight")]
    assert weights
    for name in weights:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("name", ["folder", "best.safetensors"])
def test_a_run_begins_with_another_runs_classifier_and_its_own_proposer(
    name: str,
    tiny: Tiny,
    train: Train,
    tmp_path: Path,
    finished: tuple[RunPaths, RunRecord],
) -> None:
    source = finished[0].folder if name == "folder" else finished[0].folder / name
    begun = load_file(finished[0].last if name == "folder" else source)
    options = {"lr": 0.0, "weight_decay": 0.0, "seed": 7, "policy": "expected", "proposer": "joint"}
    train(tiny(initial_checkpoint=str(source), **options), tmp_path / "with")
    train(tiny(**options), tmp_path / "without")
    after, without = (load_file(tmp_path / run / "last.safetensors") for run in ("with", "without"))
    assert_same_weights(after, begun, "model.classifier.")
    assert_same_weights(after, without, "model.proposer.")


def test_a_run_begins_with_a_proposer_that_is_alike(
    tiny: Tiny, train: Train, tmp_path: Path, finished: tuple[RunPaths, RunRecord]
) -> None:
    options = {"lr": 0.0, "weight_decay": 0.0, "seed": 7, "policy": "expected"}
    train(tiny(initial_checkpoint=str(finished[0].folder), **options), tmp_path / "with")
    begun, after = load_file(finished[0].last), load_file(tmp_path / "with/last.safetensors")
    assert_same_weights(after, begun, "model.proposer.")


def test_an_initial_checkpoint_that_does_not_fit_is_refused(
    tiny: Tiny, train: Train, tmp_path: Path, finished: tuple[RunPaths, RunRecord]
) -> None:
    folder = str(finished[0].folder)
    with pytest.raises(
        CheckpointError, match=r"same --model, --model-kwargs and number of classes; got another"
    ):
        train(tiny(initial_checkpoint=folder, model="resnet34"), tmp_path / "deeper")
    with pytest.raises(CheckpointError, match=r"a run must have a checkpoint; got none at .*gone"):
        train(tiny(initial_checkpoint=str(tmp_path / "gone")), tmp_path / "nothing")
    (tmp_path / "noise").write_bytes(b"\x80\x04." * 100)  # a pickle's first bytes
    with pytest.raises(CheckpointError, match=r"a whole safetensors file that srp wrote; got"):
        train(tiny(initial_checkpoint=str(tmp_path / "noise")), tmp_path / "damaged")
    held = tiny(initial_checkpoint=folder, proposer="joint", proposer_lr=0.0)
    with pytest.raises(CheckpointError, match=r"--proposer-lr 0 keeps a proposer as .* got none"):
        train(held, tmp_path / "unlike")


def test_a_proposer_that_is_held_stays_as_it_was(
    tiny: Tiny, train: Train, tmp_path: Path, finished: tuple[RunPaths, RunRecord]
) -> None:
    config = tiny(initial_checkpoint=str(finished[0].folder), proposer_lr=0.0)
    train(config, tmp_path / "held")
    begun, after = load_file(finished[0].last), load_file(tmp_path / "held/last.safetensors")
    names = [name for name in after if name.startswith("model.proposer.")]
    assert any("running_mean" in name for name in names)
    assert all(torch.equal(begun[name], after[name]) for name in names)


def test_the_samples_of_a_runs_validations_are_checked_once(
    train: Callable[..., RunRecord],
    tiny: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    check = ShardReader._check_members

    def noted(reader: ShardReader, number: int, entry: Any) -> None:
        checked.append(entry.key)
        check(reader, number, entry)

    monkeypatch.setattr(ShardReader, "_check_members", noted)
    record = train(tiny(epochs=3), tmp_path / "run")
    assert all(epoch.val_top1 is not None for epoch in record.epochs)
    assert len(checked) == 70 + 29
