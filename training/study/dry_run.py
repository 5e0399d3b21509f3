"""What a run would do, cost and take: `srp-train from SHARDS --dry-run`. Nothing is written.

Time is that of a few real steps, times what each stage costs in images that are trained on, by
which the bar of all stages moves too. Memory is counted, each part's bytes, not measured.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline import ShardFolder, steps_per_epoch
from pipeline.common.progress import SILENT, Progress
from training.choose import method
from training.choose.fit_proposer import FITTING
from training.choose.method import EXPLOITING, EXPLORING, FORWARD, Counts, explored_config
from training.config import TrainConfig
from training.data.kept import place_of_samples
from training.data.processes import Process
from training.data.shards import READ_AHEAD, Batch
from training.model.classifier import SelectiveClassifier
from training.model.policies import POLICIES
from training.run.resume import open_record
from training.run.state import (
    RunState,
    build_model,
    build_state,
    settled,
    training_rows,
    with_choices,
)
from training.run.step import set_train, train_step
from training.saved.folder import RunPaths
from training.score.cost import count_macs
from training.study.planned import TRAINING
from training.study.runner import run_costs
from training.study.sizes import describe_machine

STEPS, WARM_UP_STEPS = 10, 2
MOST_S = 30  # after which no further step is measured
VALIDATING = "validating"
MEASURING = "measuring"


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of a run.

    Attributes:
        name: As its bar is called.
        epochs: Passes; None where it has none.
        steps: Of all passes; None where it has none.
        images: What it costs, in images that are trained on.
        seconds: Estimated.
    """

    name: str
    epochs: int | None
    steps: int | None
    images: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A run that is planned.

    Attributes:
        run: Folder that it would write.
        policy: Its policy.
        model: Its classifier.
        batch_size: Images a step.
        num_train: Images to train on.
        num_val: Images to validate on.
        num_crops: Candidates of each.
        stages: In order.
        images_per_s: Of the measured steps, with what they wait for their batches.
        num_measured: Steps that it is the median of.
        machine: That they were measured on.
        proposer_macs: For one image.
        classifier_macs: For one image.
        shard_bytes: Size of the shards of each split.
        epoch_bytes: Pixels that an epoch reads.
        memory: Bytes of each part, at its largest; of the libraries nothing.
    """

    run: str
    policy: str
    model: str
    batch_size: int
    num_train: int
    num_val: int
    num_crops: int
    stages: tuple[PlannedStage, ...]
    images_per_s: float
    num_measured: int
    machine: str
    proposer_macs: int
    classifier_macs: int
    shard_bytes: Mapping[str, int]
    epoch_bytes: int
    memory: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """Estimated time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_bytes(self) -> int:
        """Estimated memory of all parts."""
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs."""
        return {**asdict(self), "seconds": self.seconds, "peak_bytes": self.peak_bytes}


def plan_run(
    config: TrainConfig,
    *,
    shards: ShardFolder,
    paths: RunPaths,
    process: Process,
    resume: bool = False,
    progress: Progress = SILENT,
) -> DryRun:
    """Plan a whole run, measure a few of its steps in memory, and write nothing.

    Arguments and errors are those of `training.choose.method.train`.
    """
    config = settled(method.settled(config), shards)
    is_fitted = POLICIES[config.policy].is_fitted
    if is_fitted:
        method.check_stages(config, shards, process.world_size)
    open_record(config, shards=shards, paths=paths, process=process, resume=resume)
    counts = Counts.of(config, shards)
    model = build_model(config, shards, process)
    proposer_macs, classifier_macs = count_macs(model)
    stepped = replace(
        explored_config(config) if is_fitted else config,
        preload="none", start_size=None, grad_accum_steps=1,
    )  # fmt: skip
    seconds, saved, state = _measured(stepped, shards, process, progress)
    images_per_s = config.batch_size / median(seconds)
    rows = len(training_rows(shards, config.fold))
    epoch_bytes = model.reader(
        shards, "train", process, with_glimpses=not config.chooses_ahead
    ).num_bytes(rows)
    return DryRun(
        run=str(paths.folder),
        policy=config.policy,
        model=config.model,
        batch_size=config.batch_size,
        num_train=rows,
        num_val=counts.num_val,
        num_crops=counts.num_crops,
        stages=_stages(config, shards, counts, images_per_s),
        images_per_s=images_per_s,
        num_measured=len(seconds),
        machine=describe_machine(process.device),
        proposer_macs=proposer_macs,
        classifier_macs=classifier_macs,
        shard_bytes={
            split: sum(shard.num_bytes for shard in shards.manifest.of_split(split))
            for split in ("train", "val")
        },
        epoch_bytes=epoch_bytes,
        memory=_memory(config, model, state, saved=saved, epoch_bytes=epoch_bytes, rows=rows),
    )


def _stages(
    config: TrainConfig, shards: ShardFolder, counts: Counts, images_per_s: float
) -> tuple[PlannedStage, ...]:
    costs = run_costs(config, counts)
    num_views = counts.num_crops if POLICIES[config.policy].averages else 1
    num_validations = (config.own_epochs - 1) // config.val_interval
    costs[VALIDATING] = num_validations * num_views * counts.num_val / FORWARD
    # A step shows the classifier one crop of each image, or what `run_costs` says.
    views = costs.get(TRAINING, 0) / (config.epochs * counts.num_train) or 1
    own = (config.own_epochs, config.fold)
    trained = {TRAINING: own, EXPLOITING: own} | {
        name: (config.num_explored, fold) for fold, name in enumerate(EXPLORING)
    }
    stages = []
    for name, images in costs.items():
        epochs, steps = config.fit_epochs if name == FITTING else None, None
        if name in trained:
            epochs, fold = trained[name]
            steps = epochs * steps_per_epoch(
                len(training_rows(shards, fold)), batch_size=config.images_per_rank, world_size=1
            )
        seconds = images / (images_per_s * views)
        stages.append(
            PlannedStage(name=name, epochs=epochs, steps=steps, images=images, seconds=seconds)
        )
    return tuple(stages)


def _measured(
    config: TrainConfig, shards: ShardFolder, process: Process, progress: Progress
) -> tuple[list[float], int, RunState]:
    """Take a few steps on the first images.

    Returns:
        Seconds of each step that counts, with the wait for its batch; bytes that the forward pass
        keeps for the backward pass; the state after the steps.
    """
    total = WARM_UP_STEPS + STEPS
    part = shards.limited(total * config.batch_size)
    state = build_state(config, part, process)
    if config.chooses_ahead:
        state = with_choices(state, part)
    set_train(state)
    first = config.random_epochs * state.steps  # the first that chooses as most do
    seconds: list[float] = []
    saved, begun = 0, time.perf_counter()
    for step, batch in enumerate(state.batches):
        if step == 0:
            saved = _saved_bytes(state, batch, step=first)
        else:
            train_step(state, batch, step=first + step).loss.item()  # waits for the device
        ended = time.perf_counter()
        seconds.append(ended - begun)
        begun = ended
        progress.update(MEASURING, len(seconds), min(total, state.steps))
        if len(seconds) > WARM_UP_STEPS and sum(seconds) > MOST_S:
            break
    progress.update(MEASURING, len(seconds), len(seconds))
    return seconds[WARM_UP_STEPS:] or seconds[-1:], saved, state


def _saved_bytes(state: RunState, batch: Batch, *, step: int) -> int:
    """Take a step, and count what its forward pass keeps, the weights aside."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in state.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        train_step(state, batch, step=step).loss.item()
    return sum(kept.values())


def _memory(
    config: TrainConfig,
    model: SelectiveClassifier,
    state: RunState,
    *,
    saved: int,
    epoch_bytes: int,
    rows: int,
) -> dict[str, int]:
    """Count the bytes of each part of a run."""
    copies = 1 if state.average is None else 2
    moments = (
        value
        for moment in state.optimizer.state.values()
        for value in moment.values()
        if isinstance(value, Tensor)
    )
    num_ahead = READ_AHEAD * config.workers
    parts = {
        "weights": copies * _num_bytes((*model.parameters(), *model.buffers())),
        "gradients": _num_bytes(state.trained),
        "optimizer": _num_bytes(moments),
        "forward pass, for the backward pass": saved,
        "batches read ahead": num_ahead * config.images_per_rank * epoch_bytes // rows,
    }
    kept_on = place_of_samples(config.preload, epoch_bytes, state.process)
    if kept_on is not None:
        parts[f"training pixels, kept on {kept_on.type}"] = epoch_bytes
    if config.chooses_ahead:
        parts["glimpses of the fit"] = rows * len(model.looked_at) * model.glimpse_px**2
    return parts


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
