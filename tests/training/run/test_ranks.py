"""One step on one, two and three processes: the same images, the same chance, the same weights."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from warm import Ended, WarmPython

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.choose.method import check_stages
from training.config import TrainConfig
from training.data.processes import Process
from training.run.state import build_state
from training.run.step import train_step
from training.saved.folder import RunPaths
from training.saved.record import EpochPart, load_record

Tiny = Callable[..., TrainConfig]
GLOBAL = 12  # images of a step
NUM_STEPS = 3
# Losses of a few steps in float32 differ by the order of sums alone, which each step multiplies.
NOISE = 1e-5
# Prints the images of each step, its loss over all ranks and whether each image was mirrored.
TRACE = """\
import json, sys
import torch
from itertools import islice
from pipeline import ShardFolder
from training.config import TrainConfig
from training.data.processes import gather_ranks, started
from training.run import views
from training.run.state import build_state
from training.run.step import set_train, train_step

shards, variants = sys.argv[1], json.loads(sys.argv[2])
drawn, real = [], views.alternated
def alternated(state, batch, chance, *, step):
    drawn.append((chance.draws.flips_B.int(), chance.noise_BMK))
    return real(state, batch, chance, step=step)
views.alternated = alternated

with started("cpu") as process:
    for options in variants:
        each = GLOBAL // process.world_size // options.get("grad_accum_steps", 1)
        config = TrainConfig(model="test_resnet", batch_size=each, amp=False, lr=0.02, shift=2,
                             epochs=1, device="cpu", workers=1, **options)
        state = build_state(config, ShardFolder.open(shards), process)
        set_train(state)
        for step, batch in enumerate(islice(state.batches, NUM_STEPS)):
            drawn.clear()
            losses_B = train_step(state, batch, step=step).losses_B.detach()
            mean = gather_ranks(losses_B.double(), process).mean()
            rows = gather_ranks(batch.indices_B.clone(), process).flatten()
            flips, noises = (gather_ranks(torch.cat(parts), process).flatten()
                             for parts in zip(*drawn))
            if process.is_main:
                print(json.dumps([mean.item(), rows.tolist(), flips.tolist(), noises.tolist()]))
"""
SYNCED: dict[str, Any] = {"policy": "straight-through", "sync_bn": True}
PLAIN: dict[str, Any] = {"policy": "straight-through", "model_kwargs": ["drop_rate=0.5"]}


@pytest.fixture(scope="module")
def traces(
    warm_training: WarmPython, scene_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[Any]]]:
    """Traces of SYNCED, of PLAIN, and on one process of PLAIN in three batches a step."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "trace.py"
    script.write_text(TRACE.replace("GLOBAL", str(GLOBAL)).replace("NUM_STEPS", str(NUM_STEPS)))
    found = {}
    for ranks in (1, 2, 3):
        variants = [SYNCED, PLAIN, *([{**PLAIN, "grad_accum_steps": 3}] if ranks == 1 else [])]
        words = (str(script), str(scene_shards), json.dumps(variants))
        done = warm_training.run_together(*words, folder=folder, num_processes=ranks)
        assert done.returncode == 0, done.stderr
        traced = [json.loads(line) for line in done.stdout.splitlines()]
        for at, name in enumerate(("synced", "plain", "parts")[: len(variants)]):
            found[f"{name} {ranks}"] = traced[at * NUM_STEPS : (at + 1) * NUM_STEPS]
    return found


def losses(trace: list[list[Any]]) -> torch.Tensor:
    return torch.tensor([row[0] for row in trace], dtype=torch.float64)


def test_a_step_has_the_same_images_and_the_same_chance_on_any_number_of_processes(
    traces: dict[str, list[list[Any]]],
) -> None:
    one = [row[1:] for row in traces["synced 1"]]
    assert len({tuple(rows) for rows, *_ in one}) == NUM_STEPS
    assert all([row[1:] for row in trace] == one for trace in traces.values())


def test_with_synchronised_batch_norms_losses_agree(traces: dict[str, list[list[Any]]]) -> None:
    one = losses(traces["synced 1"])
    for ranks in (2, 3):
        torch.testing.assert_close(losses(traces[f"synced {ranks}"]), one, rtol=NOISE, atol=0)


def test_three_processes_normalise_and_drop_as_three_batches_of_one_do(
    traces: dict[str, list[list[Any]]],
) -> None:
    three, parts = losses(traces["plain 3"]), losses(traces["parts 1"])
    torch.testing.assert_close(three, parts, rtol=NOISE, atol=0)
    assert ((three - losses(traces["plain 1"])).abs() > 100 * NOISE).any()


def test_a_step_of_several_batches_is_that_of_one_where_no_batch_norm_sees_their_bounds(
    opened: ShardFolder, alone: Process, tiny: Tiny
) -> None:
    weights = []
    for batch_size, parts in ((12, 1), (4, 3)):
        config = tiny(
            policy="centre", batch_size=batch_size, grad_accum_steps=parts, model_ema=True,
            clip_grad=0.1,
        )  # fmt: skip
        state = build_state(config, opened, alone)
        assert (state.steps, state.images_per_step) == (70 // 12, 12)
        state.model.eval()  # its batch norms do not look at the batch
        for step, batch in enumerate(state.batches):
            output = train_step(state, batch, step=step)
            assert output.losses_B.shape == (12,)
        assert state.scheduler.last_epoch == 5
        weights.append(state.scored.state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.sweep  # three programs
def test_a_run_of_several_batches_a_step_is_stopped_and_resumed_bit_for_bit(
    tmp_path: Path, scene_shards: Path, warm_training: WarmPython
) -> None:
    options = ("--grad-accum-steps", "2", "--batch-size", "3")
    whole, broken = (RunPaths(folder=tmp_path / name) for name in ("whole", "broken"))
    assert run(warm_training, scene_shards, whole, *options).returncode == 0
    stopped = run(warm_training, scene_shards, broken, *options, at_step=13)
    assert stopped.returncode == 75, stopped.stderr
    assert run(warm_training, scene_shards, broken, *options, "--resume").returncode == 0
    first, second = (load_file(paths.last) for paths in (whole, broken))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# Each process notes the images of its steps; at AT_STEP, all get SIGTERM.
NOTED = """\
import json, os, signal, sys
from training.run import train
from training.cli.train import main
real = train.train_step
def train_step(state, batch, *, step):
    with open(f"seen-{os.environ.get('RANK', 0)}.txt", "a") as file:
        file.write(json.dumps([step, batch.indices_B.tolist()]) + "\\n")
    if step == AT_STEP:
        signal.raise_signal(signal.SIGTERM)
    return real(state, batch, step=step)
train.train_step = train_step
train.CHECK_STEPS = 1
sys.exit(main())
"""


def run(
    warm: WarmPython, shards: Path, paths: RunPaths, *options: str, ranks: int = 1,
    at_step: int = -1,
) -> Ended:  # fmt: skip
    """Train a run of two epochs of 11 steps, with six images in each."""
    output = paths.folder.parent
    script = output / f"noted-{at_step}.py"
    script.write_text(NOTED.replace("AT_STEP", str(at_step)))
    words = (
        *("from", str(shards), "--output", str(output), "--experiment", paths.folder.name),
        *("--epochs", "2", "--model", "test_resnet", "--lr", "0.02", "--no-amp", "--device", "cpu"),
        *("--policy", "straight-through", "--workers", "1", "--no-log-tensorboard", *options),
    )
    return warm.run_together(str(script), *words, folder=output, num_processes=ranks)


def steps_seen(folder: Path) -> dict[int, list[int]]:
    """Give the images of each step over all processes, and check that no step was taken twice."""
    seen: dict[int, list[int]] = {}
    for path in sorted(folder.glob("seen-*.txt")):
        taken = [json.loads(line) for line in path.read_text().splitlines()]
        assert len({step for step, _ in taken}) == len(taken)
        for step, rows in taken:
            seen[step] = sorted(seen.get(step, []) + rows)
    return seen


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, "3"), (1, "6")), ((1, "6"), (3, "2"))],
)
@pytest.mark.sweep  # six processes each
def test_a_run_goes_on_with_another_number_of_processes_and_the_images_that_are_left(
    before: tuple[int, str], after: tuple[int, str], tmp_path: Path, scene_shards: Path,
    warm_training: WarmPython,
) -> None:  # fmt: skip
    ends = []
    for name, second in (("other", after), ("same", before)):
        paths = RunPaths(folder=tmp_path / name / "run")
        paths.folder.parent.mkdir()
        for ranks, size, at_step, more in (
            (*before, 14, ()), (*second, -1, ("--resume",)),
        ):  # fmt: skip
            options = ("--batch-size", size, "--sync-bn", *more)
            done = run(warm_training, scene_shards, paths, *options, ranks=ranks, at_step=at_step)
            assert done.returncode == (75 if at_step > 0 else 0), done.stderr
        seen = steps_seen(paths.folder.parent)
        assert sorted(seen) == list(range(22))
        for epoch in range(2):
            rows = [row for step in range(11 * epoch, 11 * epoch + 11) for row in seen[step]]
            assert len(set(rows)) == len(rows) == 66
        ends.append((seen, load_record(paths.record)))
    (seen, other), (seen_too, same) = ends
    assert seen == seen_too
    assert (other.world_size, str(other.config.batch_size)) == after
    for ours, theirs in zip(other.epochs, same.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
    assert other.evaluation is not None
    assert other.evaluation.num_samples == 29


def test_sums_of_an_epoch_go_to_rank_0_where_there_were_other_ranks() -> None:
    part = EpochPart(epoch=0, step=3, sums=((1.0, 2.0), (3.0, 4.0)))
    assert [part.sums_of(rank, 2) for rank in (0, 1)] == [(1.0, 2.0), (3.0, 4.0)]
    assert [part.sums_of(rank, 3) for rank in (0, 1, 2)] == [(4.0, 6.0), (0.0, 0.0), (0.0, 0.0)]
    assert EpochPart(epoch=0).sums_of(0, 1) == (0.0, 0.0)


def test_steps_of_more_images_than_there_are_name_all_that_divides_them(
    opened: ShardFolder, tiny: Tiny
) -> None:
    three = Process(world_size=3)
    config = tiny(policy="random", batch_size=8, grad_accum_steps=3)
    with pytest.raises(ConfigError) as caught:
        build_state(config, opened, three)
    assert str(caught.value) == (
        "a step must not need more images than there are; got --batch-size 8 x --grad-accum-steps "
        "3 on 3 processes for 70 images. Lower --batch-size."
    )
    staged = tiny(policy="distilled", epochs=2, batch_size=8, grad_accum_steps=2)
    with pytest.raises(ConfigError, match=r"got --batch-size 8 x --grad-accum-steps 2 on 3 proc"):
        check_stages(staged, opened, world_size=3)


LOST = """\
import os, signal, sys, time
from datetime import timedelta
from training.data import processes
from training.run import train
from training.cli.train import main
processes.ANSWER = timedelta(seconds=3)
real = train.train_step
def train_step(state, batch, *, step):
    if step == 2 and os.environ["RANK"] == "VICTIM":
        os.kill(os.getpid(), signal.SIGNAL)
    return real(state, batch, step=step)
train.train_step = train_step
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("victim", "number", "reason"),
    [
        (0, signal.SIGKILL, "Connection "),
        pytest.param(1, signal.SIGSTOP, "Timed out|Application timeout", marks=pytest.mark.sweep),
    ],
)
def test_a_process_that_is_killed_or_hangs_ends_all_with_one_line_and_what_to_type(
    victim: int, number: signal.Signals, reason: str, tmp_path: Path, scene_shards: Path,
    warm_training: WarmPython,
) -> None:  # fmt: skip
    script = tmp_path / "lost.py"
    script.write_text(LOST.replace("VICTIM", str(victim)).replace("SIGNAL", number.name))
    words = (
        *("from", str(scene_shards), "--output", str(tmp_path), "--experiment", "lost"),
        *("--model", "test_resnet", "--no-amp", "--device", "cpu", "--batch-size", "4"),
        *("--policy", "straight-through", "--no-log-tensorboard"),
    )
    others = [rank for rank in range(3) if rank != victim]
    with warm_training.started_together(
        str(script), *words, folder=tmp_path, num_processes=3
    ) as programs:
        statuses = [programs[rank].wait(100) for rank in others]
        programs[victim].kill()
        printed = [program.communicate()[1] for program in programs]
    assert statuses == [1, 1]
    lines = [line for text in printed for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert lines[0].startswith(
        "error: every process of a run must live to its end, and answer the others within "
    )
    assert re.search(reason, lines[0])
    assert " The last checkpoint is kept. Resume with: torchrun --nproc-per-node 3 -m " in lines[0]
    assert lines[0].endswith(" --resume")
