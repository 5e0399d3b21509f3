"""Predictions are those of an evaluation, to the last logit, whatever the image's file."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import ShardFolder
from pipeline.common.progress import Progress
from training.config import TrainConfig
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.predict import predict as predicting
from training.predict.load import LoadedRun, load_run
from training.predict.predict import Prediction, Tally, predict
from training.run.load import load_model
from training.saved.folder import RunPaths
from training.saved.record import RunRecord
from training.score.classify import classify_crops

CPU = torch.device("cpu")
Finished = tuple[RunPaths, RunRecord]


def predictions(run: LoadedRun, files: list[Path], **options: Any) -> list[Prediction]:
    tally = options.pop("tally", Tally())
    batches = predict(run, files, num_files=len(files), workers=2, tally=tally, **options)
    return list(itertools.chain.from_iterable(batches))


def check_equal_to_evaluation(
    folder: Path, shards: ShardFolder, source: Path, process: Process
) -> None:
    """Predict the validation images in the order of the shards, and compare bit for bit."""
    reader = shards.reader("val")
    files = [source / reader.read(index).meta.path for index in range(len(reader))]
    model = load_model(RunPaths(folder=folder), shards, workers=1, process=process)
    logits = classify_crops(model, shards, process=process)
    found = predictions(load_run(folder, CPU), files)
    assert [each.chosen for each in found] == logits.chosen_N.tolist()
    chosen_NC = logits.logits_NKC[torch.arange(len(files)), logits.chosen_N]
    assert torch.equal(torch.stack([each.logits_C for each in found]), chosen_NC)
    if model.proposer is not None:
        probabilities = [each.probabilities_K for each in found]
        assert torch.equal(torch.stack(probabilities), logits.probabilities_NK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "straight-through"},
        {"policy": "straight-through", "proposer": "map", "glimpse_size": 24},
        {"policy": "blend", "candidates": "five", "glimpse_size": 20, "pad_glimpses": True},
        {"policy": "whole"},
        {"policy": "centre", "amp": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_logits_are_those_of_an_evaluation_to_the_last_bit(
    options: dict[str, Any], tiny: Callable[..., TrainConfig], train: Callable[..., RunRecord],
    opened: ShardFolder, scenes: Path, alone: Process, tmp_path: Path,
) -> None:  # fmt: skip
    train(tiny(**options), tmp_path / "run")
    check_equal_to_evaluation(tmp_path / "run", opened, scenes, alone)


def test_an_image_of_any_shape_and_mode_is_predicted_as_its_pixels_are(
    finished: Finished, tmp_path: Path, scenes: Path
) -> None:
    scene = Image.open(next(scenes.glob("val/*/*.JPEG"))).convert("RGB")
    large = scene.resize((4000, 3000), Image.Resampling.BICUBIC)  # 12 megapixels
    exif = Image.Exif()
    exif[274] = 6
    opaque = large.copy()
    opaque.putalpha(255)
    kinds: dict[str, Callable[[Path], None]] = {
        "plain.png": lambda path: large.save(path, compress_level=1),
        "alpha.png": lambda path: opaque.save(path, compress_level=1),
        "turned.tif": lambda path: large.save(path),
        "turned.webp": lambda path: large.transpose(Image.Transpose.ROTATE_90).save(
            path, lossless=True, quality=0, method=0, exif=exif.tobytes()
        ),
    }
    for name, save in kinds.items():
        save(tmp_path / name)
    found = predictions(load_run(finished[0].folder, CPU), [tmp_path / name for name in kinds])
    first, *others = found
    assert (first.photo.width, first.photo.height) == (4000, 3000)
    for each in others:
        assert torch.equal(each.logits_C, first.logits_C), each.photo.file
        assert (each.photo.width, each.photo.height) == (4000, 3000)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (7, 5)])
def test_the_smallest_and_narrowest_images_are_predicted(
    size: tuple[int, int], finished: Finished, tmp_path: Path
) -> None:
    Image.new("RGB", size, "orange").save(tmp_path / "odd.png")
    (found,) = predictions(
        load_run(finished[0].folder, CPU), [tmp_path / "odd.png"], with_pictures=True
    )
    assert torch.isfinite(found.logits_C).all()


class Events(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.done: list[tuple[int, int]] = []

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        self.texts.append(text)

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        self.done.append((done, total))


def test_a_bad_image_is_named_and_skipped_and_the_others_keep_their_order(
    finished: Finished, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "EVALUATION_BATCH", 4)
    good = sorted(scenes.glob("val/*/*.JPEG"))[:9]
    (tmp_path / "text.jpg").write_text("not an image")
    files = [*good[:3], tmp_path / "text.jpg", *good[3:], tmp_path / "gone.jpg"]
    tally, events = Tally(), Events()
    run = load_run(finished[0].folder, CPU)
    found = predictions(run, files, tally=tally, progress=events)
    assert [each.photo.file for each in found] == good
    assert events.texts == [
        f"skipped {tmp_path}/text.jpg: not an image of a known format",
        f"skipped {tmp_path}/gone.jpg: No such file or directory",
    ]
    assert (tally.num_images, tally.num_rejected) == (9, 2)
    assert events.done == [(number, 11) for number in range(1, 12)]
    assert 0 < tally.proposer_s + tally.classifier_s + tally.waited_s <= tally.seconds


def test_results_come_before_all_files_are_taken(
    finished: Finished, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "EVALUATION_BATCH", 4)
    file = next(scenes.glob("val/*/*.JPEG"))
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield file

    run = load_run(finished[0].folder, CPU)
    batches = predict(run, endless(), num_files=None, workers=1, tally=Tally())
    assert [len(next(batches)) for _ in range(3)] == [4, 4, 4]
    assert taken < 100
    batches.close()  # type: ignore[attr-defined]


def test_only_the_chosen_crop_is_classified(
    finished: Finished, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    logits = SelectiveClassifier.logits

    def counted(self: SelectiveClassifier, images_BHWC: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images_BHWC.shape))
        return logits(self, images_BHWC)

    monkeypatch.setattr(SelectiveClassifier, "logits", counted)
    files = sorted(scenes.glob("val/*/*.JPEG"))[:5]
    assert len(predictions(load_run(finished[0].folder, CPU), files)) == 5
    assert seen == [(5, 32, 32, 3)]
