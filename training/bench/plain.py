"""Plain trainings of the same classifier, as most programs write them: the rivals of our step.

Processes of torch's own DataLoader read one image at a time, from the JPEGs or from our shards;
then forward, backward and SGD. What is done to an image is what the policy `whole` does.
"""

import io
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from pipeline import ShardFolder, open_source
from training.bench.config import StepBenchConfig
from training.data.processes import Process
from training.data.shards import ShardDataset, send
from training.model.classifier import SelectiveClassifier, autocast

ON_JPEGS = "plain loop: torchvision's transforms on the JPEGs"
ON_CROPS = "plain loop: torch's DataLoader on our crops"


class _Example(NamedTuple):
    """Uint8 RGB, channels last, augmented; and its class, a number until it is in a batch."""

    image_HWC: Tensor
    label: Any


class PlainLoop(NamedTuple):
    """One plain training: `batches` opens its reading anew, `step` takes a step on a batch."""

    batches: Callable[[], Generator[_Example]]
    step: Callable[[_Example], object]


@contextmanager
def plain_loops(
    config: StepBenchConfig, model: SelectiveClassifier, *, shards: ShardFolder, process: Process
) -> Iterator[dict[str, PlainLoop]]:
    """Prepare plain trainings, by name.

    Args:
        config: What is measured; with a source there is one on its JPEGs.
        model: Whose classifier is trained, at a rate of nearly 0.
        shards: To read crops from.
        process: This one.

    Raises:
        SourceError: If the source cannot be used.
    """
    with TemporaryDirectory(prefix="srp-bench-") as scratch:
        data: dict[str, _Pictures] = {}
        if config.source is not None:
            data[ON_JPEGS] = _jpegs(config, model, scratch=Path(scratch) / "archive")
        data[ON_CROPS] = _crops(config, model, shards)
        step = _plain_step(model, process)
        yield {
            name: PlainLoop(_reading(pictures, config, process), step)
            for name, pictures in data.items()
        }


def _plain_step(model: SelectiveClassifier, process: Process) -> Callable[[_Example], object]:
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=1e-6, momentum=0.9)

    def step(batch: _Example) -> None:
        images_BHWC, labels_B = (send(each, process.device) for each in batch)
        with autocast(model.config, process.device):
            loss = F.cross_entropy(model.logits(images_BHWC), labels_B)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _reading(
    pictures: "_Pictures", config: StepBenchConfig, process: Process
) -> Callable[[], Generator[_Example]]:
    """Give what begins a pass in random order that ends only when it is closed."""
    order = _Order(len(pictures), config.batch_size)
    loader = DataLoader(
        pictures,
        batch_sampler=order,
        num_workers=config.workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",  # torch's threads do not survive a fork
        pin_memory=process.device.type == "cuda",
    )

    def batches() -> Generator[_Example]:
        order.is_wanted = True
        coming = iter(loader)
        try:
            yield from coming
        finally:
            order.is_wanted = False
            for _ in coming:  # so that the processes rest while others have their turn
                pass

    return batches


class _Order(Sampler[list[int]]):
    """Batches in random order, for as long as they are wanted."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.is_wanted = True
        self._num_samples, self._batch_size = num_samples, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(0)
        while self.is_wanted:
            shape = (self._batch_size,)
            yield torch.randint(self._num_samples, shape, generator=generator).tolist()


@dataclass(frozen=True)
class _Pictures(Dataset[_Example]):
    """Images by their row, each opened by `read` and then augmented.

    Attributes:
        read: Gives a picture, a PIL image or uint8 `(3, H, W)`, and its class.
        num_images: Rows.
        transform: Makes uint8 `(3, H, W)` of a picture.
    """

    read: Callable[[int], tuple[Any, int]]
    num_images: int
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, row: int) -> _Example:
        picture, label = self.read(row)
        return _Example(self.transform(picture).permute(1, 2, 0).contiguous(), label)


def _jpegs(config: StepBenchConfig, model: SelectiveClassifier, *, scratch: Path) -> _Pictures:
    if config.source is None:
        raise RuntimeError("JPEGs without a source")
    source = open_source(config.source, scratch=scratch)
    images = source.images["train"]
    drawn = np.random.default_rng(0).permutation(len(images))[: config.images]
    files = [(images[row], source.classes.index(images[row].class_name)) for row in drawn]
    resize = transforms.Resize((model.crop_px, model.crop_px))
    steps = [resize, *_augmentation(model), transforms.PILToTensor()]
    return _Pictures(partial(_decoded, files), len(files), transforms.Compose(steps))


def _decoded(files: list[tuple[Any, int]], row: int) -> tuple[Image.Image, int]:
    file, label = files[row]
    return Image.open(io.BytesIO(file.read())).convert("RGB"), label


def _crops(config: StepBenchConfig, model: SelectiveClassifier, shards: ShardFolder) -> _Pictures:
    data = ShardDataset(shards.reader("train"), candidates=model.candidates[:1])
    return _Pictures(
        partial(_first_crop, data), len(data), transforms.Compose(_augmentation(model))
    )


def _first_crop(data: ShardDataset, row: int) -> tuple[Tensor, int]:
    example = data[row]
    return example.crops_KHWC[0].permute(2, 0, 1), example.label


def _augmentation(model: SelectiveClassifier) -> list[Callable[[Any], Any]]:
    config = model.config
    crop = transforms.RandomCrop(model.crop_px, padding=config.shift, padding_mode="edge")
    return [transforms.RandomHorizontalFlip(config.hflip), crop]
