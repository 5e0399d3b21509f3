"""What the trainer's tests share: tiny shards of drawn scenes, and runs that take a second."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from warm import WarmPython

from pipeline import ShardFolder
from pipeline.build.build import build_shards
from pipeline.build.config import BuildConfig
from pipeline.datasets.config import SceneConfig
from pipeline.datasets.scenes import draw_dataset
from training.cli.train import main
from training.config import TrainConfig
from training.data.processes import Process
from training.data.shards import Batch
from training.run.train import fit
from training.saved.folder import RunPaths
from training.saved.record import DataRecord, EpochRecord, RunRecord
from training.score.crop_logits import CropLogits
from training.score.metrics import Evaluation, final_prediction
from training.study.finished import FinishedRun

REPO = Path(__file__).resolve().parents[2]
CANVAS, CROP, GLIMPSE = 48, 32, 16
TINY = TrainConfig(
    policy="straight-through",
    model="test_resnet",
    epochs=1,
    batch_size=16,
    lr=0.02,
    shift=2,
    workers=2,
    amp=False,
    device="cpu",
    log_tensorboard=False,
)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 70 scenes to train on and 29 to validate on: no whole number of batches."""
    folder = tmp_path_factory.mktemp("scenes") / "images"
    draw_dataset(SceneConfig(out=folder, train=7, val=3, size_px=56))
    sorted((folder / "val").glob("*/*.JPEG"))[0].unlink()
    return folder


BUILD = {
    "canvas_size": CANVAS,
    "crop_size": CROP,
    "glimpse_size": GLIMPSE,
    "candidates": "full+five",
    "shard_mib": 1,
    "workers": 1,
}


def _build(scenes: Path, out: Path, **options: Any) -> Path:
    config = BuildConfig(source=scenes, out=out, **{**BUILD, **options})
    build_shards(config)
    return out


@pytest.fixture(scope="session")
def scene_shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ShardFolder of the scenes in the canvas layout. Only read them."""
    return _build(scenes, tmp_path_factory.mktemp("built") / "canvas", layout="canvas")


@pytest.fixture(scope="session")
def scene_tensors(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples in the tensors layout. Only read them."""
    return _build(scenes, tmp_path_factory.mktemp("built") / "tensors", layout="tensors")


@pytest.fixture(scope="session")
def five_shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without the whole image among the candidates. Only read them."""
    return _build(scenes, tmp_path_factory.mktemp("built") / "five", candidates="five")


@pytest.fixture(scope="session")
def small_shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the same images, cut from a smaller canvas. Only read them."""
    out = tmp_path_factory.mktemp("built") / "small"
    return _build(scenes, out, canvas_size=40, crop_size=24, limit=3)


@pytest.fixture(scope="session")
def several_shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images on large canvases: several shards a split. Only read them."""
    return _build(scenes, tmp_path_factory.mktemp("built") / "several", canvas_size=144)


@pytest.fixture(scope="session")
def opened(scene_shards: Path) -> ShardFolder:
    """The shards of the scenes, opened."""
    return ShardFolder.open(scene_shards)


@pytest.fixture(scope="session")
def alone() -> Process:
    """One process on the CPU."""
    return Process(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def warm_training() -> Iterator[WarmPython]:
    """Starts programs of the trainer without waiting for torch."""
    modules = ("torch._dynamo", "torch.distributed", "training.cli.train", "training.run.train")
    python = WarmPython(*modules, folder=REPO)
    yield python
    python.close()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    """Change a config that trains in a second: `tiny(policy="whole")`."""

    def make(**options: Any) -> TrainConfig:
        return replace(TINY, **options)

    return make


@pytest.fixture(scope="session")
def train(opened: ShardFolder, alone: Process) -> Callable[..., RunRecord]:
    """Train a run in a folder: `train(config, folder, resume=True)`."""

    def run(config: TrainConfig, folder: Path, **options: Any) -> RunRecord:
        defaults = {"shards": opened, "process": alone, "resume": False}
        return fit(config, paths=RunPaths(folder=folder), **{**defaults, **options})

    return run


@pytest.fixture(scope="session")
def finished(
    train: Callable[..., RunRecord], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunPaths, RunRecord]:
    """A run that took two epochs and was evaluated. Only read it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return RunPaths(folder=folder), train(replace(TINY, epochs=2), folder)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """Make a batch of noise: `make_batch(5, num_crops=6)`."""

    def make(num_samples: int, *, num_crops: int = 6, num_classes: int = 10) -> Batch:
        generator = torch.Generator().manual_seed(7)

        def pixels(*shape: int) -> torch.Tensor:
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

        return Batch(
            pixels(num_samples, num_crops, CROP, CROP, 3),
            None,
            None,
            pixels(num_samples, num_crops, GLIMPSE, GLIMPSE),
            torch.randint(0, num_classes, (num_samples,), generator=generator),
            torch.arange(num_samples),
        )

    return make


@pytest.fixture(scope="session")
def srp_train() -> Callable[..., Result]:
    """Run `srp-train` with these arguments; whatever it ends in, it is not a traceback."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture(scope="session")
def make_run(opened: ShardFolder) -> Callable[..., FinishedRun]:
    """Make up a finished run: `make_run("blend-s1", policy="blend", seed=1, accuracy=0.7)`.

    The classifier is right on each crop with that chance; the numbers follow from the name.
    """

    def make(
        name: str, *, data: DataRecord | None = None, accuracy: float = 0.5, **options: Any
    ) -> FinishedRun:
        data = data or DataRecord.of(opened.manifest)
        config = replace(TINY, epochs=2, **options)
        logits = make_logits(data, accuracy, zlib.crc32(name.encode()))
        evaluation = make_evaluation(logits, config, data)
        epochs = tuple(
            EpochRecord(
                epoch=epoch, train_loss=2 / epoch, train_top1=10.0 * epoch,
                val_top1=evaluation.top1 * epoch / 2, images_per_s=100.0 + epoch, seconds=3.0,
            ) for epoch in (1, 2)
        )  # fmt: skip
        record = RunRecord(
            name=name, config=config, data=data, shards="shards", commit="abc1234", hardware="CPU",
            world_size=1, epochs=epochs, evaluation=evaluation, seconds=61.0,
        )  # fmt: skip
        return FinishedRun(folder=Path(name), record=record, evaluation=evaluation, logits=logits)

    return make


def make_logits(data: DataRecord, accuracy: float, seed: int) -> CropLogits:
    """Make up what a classifier says of every crop; each image has one that is easier."""
    generator = torch.Generator().manual_seed(seed)
    shape, num_classes = (data.num_val, len(data.spec.crop_layout)), len(data.classes)
    labels_N = torch.arange(data.num_val) % num_classes
    guesses_NK = torch.randint(0, num_classes, shape, generator=generator)
    is_easy_NK = torch.arange(shape[0])[:, None] % shape[1] == torch.arange(shape[1])
    chance_NK = torch.where(is_easy_NK, (1 + accuracy) / 2, accuracy)
    is_right_NK = torch.rand(shape, generator=generator) < chance_NK
    predicted_NK = torch.where(is_right_NK, labels_N[:, None], guesses_NK)
    seen_NKC = torch.nn.functional.one_hot(predicted_NK, num_classes)
    noise_NKC = torch.rand((*shape, num_classes), generator=generator)
    return CropLogits(
        labels_N=labels_N,
        logits_NKC=torch.where(is_easy_NK, 4, 2)[..., None] * seen_NKC + noise_NKC,
        probabilities_NK=torch.randn(shape, generator=generator).softmax(1),
    )


def make_evaluation(logits: CropLogits, config: TrainConfig, data: DataRecord) -> Evaluation:
    """Draw the figures from logits, with made-up costs."""
    right_NK = 100 * (logits.predicted_NK == logits.labels_N[:, None]).double()
    predicted_N = final_prediction(logits, config.policy)
    num_classes, names = len(data.classes), data.spec.crop_layout.names
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    confusion.index_put_((logits.labels_N, predicted_N), torch.tensor(1), accumulate=True)
    by_class = 100 * confusion.diag() / confusion.sum(1)
    return Evaluation(
        crops=names,
        num_samples=data.num_val,
        top1=float(100 * (predicted_N == logits.labels_N).double().mean()),
        top1_crops=tuple(right_NK.mean(0).tolist()),
        top1_random=float(right_NK.mean()),
        top1_mean=100 * float((logits.averaged_N == logits.labels_N).double().mean()),
        top1_any_right=float(right_NK.amax(1).mean()),
        shares=tuple((logits.chosen_N.bincount(minlength=len(names)) / data.num_val).tolist()),
        entropy_of_mean=1.7,
        mean_entropy=1.1,
        proposer_macs=120_000 if config.selects else 0,
        classifier_macs=148_000_000,
        top1_classes=tuple(by_class.tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


@pytest.fixture(scope="session")
def runs(make_run: Callable[..., FinishedRun]) -> list[FinishedRun]:
    """Two glimpse sizes of one policy, the whole image, and two seeds of each."""
    return [
        make_run(f"{name}-s{seed}", seed=seed, **options)
        for seed in (1, 0)
        for name, options in (
            ("whole", {"policy": "whole"}),
            ("expected-g16", {"policy": "expected", "glimpse_size": 16, "accuracy": 0.8}),
            ("expected-g8", {"policy": "expected", "glimpse_size": 8}),
        )
    ]
