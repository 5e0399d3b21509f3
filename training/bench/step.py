"""`srp-train bench step`: the real training step, without its loader, its parts, and the limit.

Every row is images/s of the training split: the step of `training.run.train` with the batches of a
run; the same step on batches that lie on the device already; plain trainings; the forward and the
backward of the classifier alone; and what a matrix product, the fastest that a device does, allows.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, count, cycle, islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from pipeline import ShardFolder
from pipeline.command.results import Contender, Row, Turn, interleave
from pipeline.common.progress import SILENT, Progress
from training.bench.config import StepBenchConfig
from training.bench.plain import plain_loops
from training.data.processes import Process
from training.data.shards import READ_AHEAD, Batch
from training.model.classifier import SelectiveClassifier, autocast, uses_bfloat16
from training.run.state import RunState, build_model, build_state, settled, with_choices
from training.run.step import set_train, train_step
from training.run.train import CHECK_STEPS
from training.score.cost import count_macs
from training.study.sizes import describe_machine

CLASSIFIER, LIMIT = "classifier alone, forward and backward", "limit: matrix product"
THERE = "step on batches that are there"
STALL = "stall, %"
KEPT_BATCHES = 4  # that a step without a loader takes in turn
PASSES = 3  # a backward costs as much as two forwards
SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices that are multiplied

Step = Callable[[], object]
Read = TypeVar("Read")


def bench_step(
    config: StepBenchConfig, *, shards: ShardFolder, process: Process, progress: Progress = SILENT
) -> tuple[list[Row], dict[str, Any]]:
    """Measure the steps of some policies beside plain trainings and the limits.

    Args:
        config: What to measure.
        shards: Whose training split is read.
        process: This one, alone.
        progress: Shows the turns.

    Returns:
        The rows, and the setting that they were measured in.

    Raises:
        ConfigError: If a policy does not fit the shards.
        SourceError: If the source cannot be used.
    """
    shards = shards.limited(config.images)
    model = build_model(config.training("random"), shards, process).train()
    macs = count_macs(model)[1]
    with plain_loops(config, model, shards=shards, process=process) as plain:
        steps = [
            _of_policy(config, policy, shards, process, against=tuple(plain))
            for policy in config.policies
        ]
        contenders = [
            *chain.from_iterable(steps),
            *(
                _with_loader(name, loop.batches, loop.step, config, process, against=(CLASSIFIER,))
                for name, loop in plain.items()
            ),
            _alone(CLASSIFIER, _classifier_step(config, model), config, process, against=LIMIT),
            _limit(config, macs, process),
        ]
        rows = interleave(contenders, rounds=config.rounds, progress=progress)
    return [_with_stall(row) for row in rows], _setting(config, macs, shards, process)


def images_per_s(step: Step, config: StepBenchConfig, process: Process) -> float:
    """Take steps for some seconds, and give their images/s.

    A GPU, which works behind, is awaited at both ends and as often as in a training.
    """
    is_gpu, num_steps = process.device.type == "cuda", 0
    if is_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    while True:
        for _ in range(CHECK_STEPS if is_gpu else 1):
            step()
            num_steps += 1
        if is_gpu:
            torch.cuda.synchronize()
        spent = time.perf_counter() - started
        if spent >= config.seconds:
            return num_steps * config.batch_size / spent


def _with_loader(
    name: str,
    open_batches: Callable[[], Generator[Read]],
    step: Callable[[Read], object],
    config: StepBenchConfig,
    process: Process,
    *,
    against: tuple[str, ...],
) -> Contender:
    """Measure steps on batches that are read meanwhile; reading begins with each turn."""

    def measure() -> Turn:
        with closing(open_batches()) as batches:
            for _ in range(READ_AHEAD * config.workers):
                next(batches)  # so that each batch that is counted is read while it is timed
            return Turn(images_per_s(lambda: step(next(batches)), config, process))

    return Contender(row=Row(name=name), measure=measure, against=against)


def _alone(
    name: str, step: Step, config: StepBenchConfig, process: Process, *, against: str
) -> Contender:
    """Measure steps for which nothing is read."""

    def measure() -> Turn:
        return Turn(images_per_s(step, config, process))

    return Contender(row=Row(name=name), measure=measure, against=(against,))


def _of_policy(
    config: StepBenchConfig,
    policy: str,
    shards: ShardFolder,
    process: Process,
    *,
    against: tuple[str, ...],
) -> list[Contender]:
    """Measure a policy's step with the batches of a run, and with batches that are there."""
    state = build_state(settled(config.training(policy), shards), shards, process)
    if state.config.chooses_ahead:
        state = with_choices(state, shards)
    set_train(state)
    epochs = partial(_epochs, state)
    with closing(epochs()) as batches:
        there = cycle([_kept(batch) for batch in islice(batches, KEPT_BATCHES)])
    for _ in state.batches:  # a sample is checked when it is first read
        pass
    numbers = count()

    def step(batch: Batch) -> object:
        return train_step(state, batch, step=next(numbers))

    alone = f"{policy}: {THERE}"
    return [
        _with_loader(
            f"{policy}: training step", epochs, step, config, process, against=(alone, *against)
        ),
        _alone(alone, lambda: step(next(there)), config, process, against=CLASSIFIER),
    ]


def _epochs(state: RunState) -> Generator[Batch]:
    """Read epoch after epoch."""
    while True:
        yield from state.batches


def _kept(batch: Batch) -> Batch:
    return Batch(*(None if tensor is None else tensor.clone() for tensor in batch))  # type: ignore[arg-type]


def _classifier_step(config: StepBenchConfig, model: SelectiveClassifier) -> Step:
    """Make one forward and backward of the classifier, without an optimizer."""
    device = model.mean_C.device
    shape = (config.batch_size, model.crop_px, model.crop_px, 3)
    images_BHWC = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels_B = torch.randint(model.num_classes, shape[:1], device=device)

    def step() -> None:
        with autocast(model.config, device):
            loss = F.cross_entropy(model.logits(images_BHWC), labels_B)
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    return step


def _limit(config: StepBenchConfig, macs: int, process: Process) -> Contender:
    """Time a matrix product in the type that a training computes in.

    Its rate is the images/s that as many operations would allow the classifier's training.
    """
    device, side = process.device, SIDES[process.device.type]
    dtype = _dtype(config, process)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def measure() -> Turn:
        products = images_per_s(lambda: torch.mm(left, right, out=out), config, process)
        flops = 2 * side**3 * products / config.batch_size
        return Turn(flops / (2 * PASSES * macs), {"GFLOP/s": flops / 1e9})

    return Contender(row=Row(name=LIMIT), measure=measure)


def _dtype(config: StepBenchConfig, process: Process) -> torch.dtype:
    is_half = uses_bfloat16(config.training("random"), process.device)
    return torch.bfloat16 if is_half else torch.float32


def _with_stall(row: Row) -> Row:
    """Say how much of a training step is spent on its loader."""
    ratio = next((ratio for name, ratio in row.ratios.items() if name.endswith(THERE)), None)
    return row if ratio is None else replace(row, figures={STALL: 100 * (1 - ratio)})


def _setting(
    config: StepBenchConfig, macs: int, shards: ShardFolder, process: Process
) -> dict[str, Any]:
    spec = shards.manifest.spec
    return {
        "machine": describe_machine(process.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "computes_in": str(_dtype(config, process)).removeprefix("torch."),
        "shards": shards.place,
        "images": shards.manifest.num_samples("train"),
        "canvas_size": spec.canvas_size,
        "crop_size": spec.crop_size,
        "glimpse_size": spec.glimpse_size,
        "candidates": config.candidates or spec.candidates,
        "model": config.model,
        "classifier_macs": macs,
        "batch_size": config.batch_size,
        "torchcompile": config.torchcompile,
        "workers": config.workers,
        "preload": config.preload,
        "source": None if config.source is None else config.source.name,
        "rounds": config.rounds,
        "seconds": config.seconds,
    }
