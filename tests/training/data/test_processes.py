import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from click.testing import Result
from safetensors.torch import load_file
from torch import nn
from warm import Ended, WarmPython, environment

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from training.data.processes import (
    Process,
    parallel,
    share_tensors,
    started,
    sum_over_ranks,
    wait_for_main,
)
from training.run.state import build_model
from training.saved.checkpoint import digest_of, load_weights, read_meta
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.classify import classify_crops
from training.score.crop_logits import CropLogits

REPO = Path(__file__).resolve().parents[3]


def test_one_process_is_the_normal_case(alone: Process) -> None:
    with started("cpu") as process:
        assert process == alone
    assert alone.is_main
    model = nn.Linear(2, 2)
    assert parallel(model, alone) is model
    assert sum_over_ranks(torch.tensor([3.0]), alone).item() == 3
    share_tensors(model.buffers(), alone)
    wait_for_main(alone)


def test_a_full_memory_is_told_with_what_to_lower_and_other_errors_are_not_hidden() -> None:
    with pytest.raises(ConfigError) as caught, started("cpu"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert str(caught.value) == (
        "a step must fit the device's memory; got can't allocate memory: you tried to allocate "
        f"{1 << 60} bytes. Lower --batch-size."
    )
    with pytest.raises(ConfigError, match=r"got CUDA out of memory\. Lower"), started("cpu"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has")
    with pytest.raises(RuntimeError, match="ours"), started("cpu"):
        raise RuntimeError("ours")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_what_to_type() -> None:
    with pytest.raises(ConfigError) as caught, started("cuda"):
        pass
    assert str(caught.value) == (
        "--device cuda needs a GPU for each process; got 0 for process 1 of this machine. "
        "Use --device cpu or fewer processes."
    )


STOP = "        signal.raise_signal(signal.SIGTERM)\n"
POISON = """\
        print("poisoned", *state.batches.keys([int(batch.indices_B[1])]), file=sys.stderr)
        logits = type(state.model).logits.__get__(state.model)
        nan = torch.tensor([[0.0], [float("nan")]])
        state.model.logits = lambda images: logits(images) + nan
    elif "logits" in vars(state.model):
        del state.model.logits
"""


def training_words(shards: Path, output: Path, name: str) -> tuple[str, ...]:
    return (
        *("from", str(shards), "--output", str(output), "--experiment", name, "--epochs", "2"),
        *("--model", "test_resnet", "--batch-size", "2", "--lr", "0.02", "--no-amp"),
        *("--device", "cpu", "--policy", "straight-through"),
    )


@pytest.fixture(scope="module")
def train_together(warm_training: WarmPython, scene_shards: Path) -> Callable[..., Ended]:
    """Train with two real processes, two images a step and process.

    `train_together(output, "name", "--resume", at_step=3, do=STOP)` trains the run `name`; at that
    step something happens in the second process alone.
    """

    def train(output: Path, name: str, *extra: str, at_step: int = -1, do: str = STOP) -> Ended:
        program = ["-m", "training"]
        if at_step >= 0:
            script = output / f"{name}.py"
            script.write_text(
                "import os, signal, sys\n"
                "import torch\n"
                "from training.run import train\n"
                "from training.cli.train import main\n"
                "real = train.train_step\n"
                "def train_step(state, batch, *, step):\n"
                f"    if step == {at_step} and os.environ['RANK'] == '1':\n"
                f"{do}"
                "    return real(state, batch, step=step)\n"
                "train.train_step = train_step\n"
                "sys.exit(main())\n"
            )
            program = [str(script)]
        words = (*program, *training_words(scene_shards, output, name), *extra)
        return warm_training.run_together(*words, folder=output)

    return train


@pytest.fixture(scope="module")
def together(
    train_together: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory
) -> RunPaths:
    """A run that two real processes trained."""
    output = tmp_path_factory.mktemp("together")
    done = train_together(output, "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: ") == 1  # rank 0 alone prints
    return RunPaths(folder=output / "two")


@pytest.mark.sweep  # its three processes import torch
def test_torchrun_trains_what_two_processes_train(together: RunPaths, scene_shards: Path) -> None:
    output = together.folder.parent
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "training", *training_words(scene_shards, output, "torchrun")],
        cwd=output, env=environment(REPO), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (load_file(output / name / "last.safetensors") for name in ("two", "torchrun"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.sweep  # twice two processes
def test_two_processes_that_are_stopped_between_looks_go_on_bit_for_bit(
    together: RunPaths, train_together: Callable[..., Ended]
) -> None:
    output, paths = together.folder.parent, RunPaths(folder=together.folder.parent / "broken")
    stopped = train_together(output, "broken", at_step=20)  # of epoch 2, the fourth
    assert stopped.returncode == 75
    assert stopped.stderr.count("error: stopped at step 10 of epoch 2, and saved, in ") == 1
    assert "Resume with: torchrun --nproc-per-node 2 -m training from " in stopped.stderr
    meta = read_meta(paths.last)
    assert meta.part is not None
    assert (meta.epoch, meta.part.step, len(meta.part.sums)) == (1, 10, 2)
    resumed = train_together(output, "broken", "--resume", "--workers", "1")
    assert resumed.returncode == 0, resumed.stderr
    for file in ("last", "best", "logits"):
        first, second = (load_file(getattr(run, file)) for run in (together, paths))
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), file
    ours, theirs = (load_record(run.record) for run in (together, paths))
    assert [(e.train_loss, e.train_top1, e.val_top1) for e in ours.epochs] == [
        (e.train_loss, e.train_top1, e.val_top1) for e in theirs.epochs
    ]


STAGED = ("--policy", "distilled", "--batch-size", "8", "--fit-epochs", "2")


@pytest.fixture(scope="module")
def staged_together(
    train_together: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory
) -> RunPaths:
    """A run of four stages that two real processes trained."""
    output = tmp_path_factory.mktemp("staged")
    done = train_together(output, "two", *STAGED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The chosen crop: ") == 1
    return RunPaths(folder=output / "two")


def test_two_processes_train_in_stages(staged_together: RunPaths, opened: ShardFolder) -> None:
    record = load_record(staged_together.record)
    assert [stage.name for stage in record.stages] == ["explore", "judge", "fit"]
    assert (record.world_size, len(record.epochs)) == (2, 1)
    halves = [load_record(staged_together.fold(fold).record) for fold in (0, 1)]
    for half in halves:  # each had a process of its own, and steps of as many images
        assert (half.world_size, half.config.grad_accum_steps, half.images_per_step) == (1, 2, 16)
    assert record.stages[0].curves == tuple(half.epochs for half in halves)
    folds = tuple(digest_of(staged_together.fold(fold).last) for fold in (0, 1))
    unseen = CropLogits.load(staged_together.out_of_fold, weights=folds, shape=(70, 6))
    assert tuple(unseen.labels_N.tolist()) == opened.reader("train").labels


@pytest.mark.sweep  # twice two processes
def test_two_processes_that_are_stopped_in_the_last_stage_resume_to_the_same_end(
    staged_together: RunPaths, train_together: Callable[..., Ended]
) -> None:
    output = staged_together.folder.parent
    stopped = train_together(output, "broken", *STAGED, at_step=3)  # the halves have two steps
    assert stopped.returncode == 75, stopped.stderr
    resumed = train_together(output, "broken", *STAGED, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for file in ("last", "out_of_fold", "logits"):
        first, second = (
            load_file(getattr(run, file))
            for run in (staged_together, RunPaths(folder=output / "broken"))
        )
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), file


def test_of_two_processes_the_sample_that_was_first_to_lose_no_number_is_named_and_it_alone(
    train_together: Callable[..., Ended], tmp_path: Path
) -> None:
    options = ("--policy", "random")
    done = train_together(tmp_path, "lost", *options, at_step=2, do=POISON)
    assert done.returncode != 0
    poisoned = done.stderr.partition("poisoned ")[2].split()[0]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert f"; got nan for {poisoned} at step 3 of epoch 1. " in lines[0]
    told = json.loads(RunPaths(folder=tmp_path / "lost").diverged.read_text())
    assert told == {"keys": [poisoned]}


@pytest.mark.quick("audit RUN-an audit")
@pytest.mark.parametrize(
    ("command", "work"), [("audit RUN", "an audit"), ("report RUNS", "a report")]
)
def test_what_runs_in_one_process_is_refused_under_torchrun_in_one_line_before_it_begins(
    command: str, work: str, finished: tuple[RunPaths, RunRecord], warm_training: WarmPython,
    tmp_path: Path,
) -> None:  # fmt: skip
    run = shutil.copytree(finished[0].folder, tmp_path / "runs" / "finished")
    places = {"RUN": run, "RUNS": run.parent}
    words = [str(places.get(word, word)) for word in command.split()]
    before = sorted(tmp_path.rglob("*"))
    done = warm_training.run_together("-m", "training", *words, folder=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0] == (
        f"error: {work} runs in one process; got 2. Type the same with srp-train in place of "
        "torchrun and its options."
    )
    assert done.statuses == (2, 2)
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_two_processes_evaluate_a_run_as_one_does(
    together: RunPaths, warm_training: WarmPython, srp_train: Callable[..., Result]
) -> None:
    words = ("evaluate", str(together.folder), "--device", "cpu", "--json")
    done = warm_training.run_together("-m", "training", *words, folder=together.folder.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(srp_train(*words).stdout)


def test_two_processes_leave_one_record_of_equal_steps(together: RunPaths) -> None:
    assert sorted(together.folder.rglob("record.json")) == [together.record]
    record = load_record(together.record)
    assert record.world_size == 2
    assert len(record.epochs) == 2
    with safetensors.safe_open(together.last, framework="pt") as file:
        fields = json.loads(file.metadata()["srp"])
    assert fields["scheduler"]["last_epoch"] == 2 * (70 // (2 * 2))


def test_two_processes_evaluate_each_sample_of_the_split_once(
    together: RunPaths, opened: ShardFolder
) -> None:
    record = load_record(together.record)
    assert record.evaluation is not None
    assert record.evaluation.num_samples == opened.manifest.num_samples("val") == 29
    assert sum(map(sum, record.evaluation.confusion)) == 29
    assert tuple(CropLogits.load(together.logits).labels_N.tolist()) == opened.reader("val").labels


def test_two_processes_evaluate_what_one_process_finds_in_the_checkpoint(
    together: RunPaths, opened: ShardFolder, alone: Process
) -> None:
    both = CropLogits.load(together.logits)
    model = build_model(read_meta(together.last).config, opened, alone)
    load_weights(together.last, model)
    one = classify_crops(model, opened, process=alone)
    assert torch.equal(both.labels_N, one.labels_N)
    assert torch.equal(both.predicted_NK, one.predicted_NK)
    assert torch.equal(both.averaged_N, one.averaged_N)
    torch.testing.assert_close(both.losses_NK, one.losses_NK, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.probabilities_NK, one.probabilities_NK, atol=1e-5, rtol=1e-4)
