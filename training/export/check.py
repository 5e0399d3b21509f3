"""Whether an exported file says what its run says, of real images.

Axes: B images at a time, H and W px, N classes, K candidates.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import Pixels, ShardFolder
from pipeline.common.errors import SourceError, VerificationError
from pipeline.common.progress import SILENT, Progress
from training.export.description import LOGIT_TOLERANCE, TIE
from training.predict.load import LoadedRun
from training.predict.predict import Prediction, Tally, predict

MOST_IMAGES = 200
LEAST_SAME = 0.9  # share of the images with the same crop, whatever is tied
BATCHES = (1, 5)  # a graph whose batch is frozen fails at one of them


class Answers(NamedTuple):
    """What a file says of B images: logits `(B, N)`, choice `(B,)`, probabilities `(B, K)`."""

    logits_BN: NDArray[np.float32]
    choice_B: NDArray[np.int64]
    probabilities_BK: NDArray[np.float32]


Runner = Callable[[Pixels], Answers]
"""Runs a file on images uint8 `(B, H, W, 3)`."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a file's answers compare with its run's.

    Attributes:
        num_images: Compared, at each size of batch.
        batches: The sizes.
        num_same_crop: Images of which the same crop was chosen, at every size of batch.
        num_same_class: Images with the same class, at every size of batch.
        largest_logit_difference: Over the images of the same crop.
        logit_span: Largest minus smallest logit of the run.
    """

    num_images: int
    batches: tuple[int, ...]
    num_same_crop: int
    num_same_class: int
    largest_logit_difference: float
    logit_span: float

    def line(self) -> str:
        """Write it on one line."""
        sizes = " and ".join(map(str, self.batches))
        return (
            f"checked on {self.num_images} images, {sizes} at a time: {self.num_same_crop} have "
            f"the run's crop, {self.num_same_class} its class; logits differ by at most "
            f"{self.largest_logit_difference:.2g} of a span of {self.logit_span:.3g}"
        )


def spread_files(files: Iterable[Path]) -> list[Path]:
    """Take at most `MOST_IMAGES` files, evenly spread over all that there are."""
    found = list(files)
    step = max(1, -(-len(found) // MOST_IMAGES))
    return found[::step]


def save_crops(shards: ShardFolder, folder: Path) -> list[Path]:
    """Write the first crop of some validation images as pictures, to check a file on.

    Args:
        shards: Of any run: a picture is a picture.
        folder: Where they are written, without loss.
    """
    reader = shards.reader("val")
    step = max(1, -(-len(reader) // MOST_IMAGES))
    files = []
    for index in range(0, len(reader), step):
        crop_CHW = reader.read(index, candidates=(0,)).originals[0]
        files.append(folder / f"{index}.png")
        Image.fromarray(np.ascontiguousarray(crop_CHW.transpose(1, 2, 0))).save(files[-1])
    return files


def check_agreement(
    run: LoadedRun, runner: Runner, files: Sequence[Path], *, workers: int,
    progress: Progress = SILENT,
) -> Agreement:  # fmt: skip
    """Compare a file with its run, on photographs, at several sizes of batch.

    Args:
        run: As it was exported, in float32.
        runner: Runs the file.
        files: Photographs; one that cannot be used is named and left out.
        workers: Threads that decode.
        progress: Shows images.

    Raises:
        SourceError: If none can be used.
        VerificationError: If they do not agree.
    """
    batches = predict(
        run, files, num_files=len(files), workers=workers, tally=Tally(), progress=progress
    )
    expected = list(itertools.chain.from_iterable(batches))
    if not expected:
        raise SourceError(
            f"a file is checked on images; got none of {len(files)} that can be used. "
            "Name photographs with --images."
        )
    found = [_compare(run, runner, expected, size) for size in BATCHES]
    agreement = _agreement(found, expected)
    is_same = (
        not sum(each.num_wrong_crops for each in found)
        and agreement.num_same_crop >= LEAST_SAME * len(expected)
        and agreement.largest_logit_difference <= LOGIT_TOLERANCE
    )
    if not is_same:
        raise VerificationError(
            "an exported file must say what its run says; got one that does not: "
            f"{agreement.line()}. No file was written. Try another --format, or other versions of "
            "torch and onnx."
        )
    return agreement


class _Compared(NamedTuple):
    """Of each image, at one size of batch: whether crop and class are the run's, and the logits.

    `differences` are the largest of an image's logits. `num_wrong_crops` counts other crops where
    the run was sure of its own.
    """

    same_crops: NDArray[np.bool_]
    same_classes: NDArray[np.bool_]
    differences: NDArray[np.float64]
    num_wrong_crops: int


def _compare(
    run: LoadedRun, runner: Runner, expected: Sequence[Prediction], size: int
) -> _Compared:
    logits, choices, num_wrong = [], [], 0
    for images_BHWC, part in _batches(expected, size, turned=run.spec.exif):
        answers = runner(images_BHWC)
        logits += list(answers.logits_BN[: len(part)])
        choices += answers.choice_B[: len(part)].tolist()
        num_wrong += sum(
            _is_wrong(each, choice)
            for each, choice in zip(part, choices[-len(part) :], strict=True)
        )
    own = np.stack([each.logits_C.numpy() for each in expected])
    same_crops = np.array([each.chosen for each in expected]) == choices
    differences = np.abs(np.stack(logits).astype(np.float64) - own).max(1)
    return _Compared(
        same_crops, np.stack(logits).argmax(1) == own.argmax(1), differences, num_wrong
    )


def _is_wrong(expected: Prediction, choice: int) -> bool:
    """Whether another crop was chosen, though the run's probabilities of the two are no tie."""
    if choice == expected.chosen or expected.probabilities_K is None:
        return choice != expected.chosen
    chances_K = expected.probabilities_K
    return bool(chances_K[expected.chosen] - chances_K[choice] > TIE)


def _batches(
    expected: Sequence[Prediction], size: int, *, turned: bool
) -> Iterator[tuple[Pixels, Sequence[Prediction]]]:
    """Group neighbours of one size; a batch that is not full repeats its last image."""
    one_size = itertools.groupby(expected, lambda each: (each.photo.height, each.photo.width))
    for _, group in one_size:
        members = list(group)
        for at in range(0, len(members), size):
            part = members[at : at + size]
            images = [decoded(each.photo.file, turned=turned) for each in part]
            yield np.stack(images + images[-1:] * (size - len(part))), part


def decoded(file: Path, *, turned: bool) -> Pixels:
    """Decode a photograph as a user of the file would, uint8 `(H, W, 3)`."""
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image) if turned else image
        return np.asarray(upright.convert("RGB"))


def _agreement(found: Sequence[_Compared], expected: Sequence[Prediction]) -> Agreement:
    own = np.stack([each.logits_C.numpy() for each in expected])
    kept = [each.differences[each.same_crops] for each in found]
    return Agreement(
        num_images=len(expected),
        batches=BATCHES,
        num_same_crop=int(np.all([each.same_crops for each in found], 0).sum()),
        num_same_class=int(np.all([each.same_classes for each in found], 0).sum()),
        largest_logit_difference=float(np.concatenate(kept).max(initial=0)),
        logit_span=float(own.max() - own.min()),
    )
