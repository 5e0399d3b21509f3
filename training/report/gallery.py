"""What a run looked at: some validation images, each with its crops, their scores and the map.

Which images is a rule, not a pick: the first by the SHA-256 of their keys, then those with the
largest regret. Axes: N samples of the split, B samples shown, K candidates, M and N of a map.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from pipeline import ObjectBox, Sample, ShardFolder
from training.model.classifier import candidate_indices
from training.report.heat_maps import HeatMaps, draw_heat
from training.report.html import data_uri
from training.score.crop_logits import CropLogits
from training.score.pictures import canvas_picture, order_by_hash
from training.study.finished import FinishedRun

NUM_DRAWN = 36
NUM_REGRETTED = 12
PICTURE_PX = 224  # with JPEG_QUALITY it keeps 48 images below 1 MB
JPEG_QUALITY = 80


class Rows(NamedTuple):
    """Samples to show, as indices in the split; an image can be in both."""

    drawn: tuple[int, ...]
    regretted: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Each once: the drawn ones, then the rest."""
        return tuple(dict.fromkeys((*self.drawn, *self.regretted)))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A box on the canvas, % of its side."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, box: ObjectBox) -> "Place":
        """Take a box in fractions of the side."""
        x0, y0, x1, y1 = (100 * edge for edge in box)
        return cls(left=x0, top=y0, width=x1 - x0, height=y1 - y0)

    @property
    def background(self) -> str:
        """CSS that shows this part of the canvas, and no more, as an element's background."""
        x, y = (
            100 * start / (100 - size) if size < 100 else 0
            for start, size in ((self.left, self.width), (self.top, self.height))
        )
        width, height = 10_000 / self.width, 10_000 / self.height
        return (
            f"background-size: {width:.5g}% {height:.5g}%; background-position: {x:.5g}% {y:.5g}%"
        )


@dataclass(frozen=True, kw_only=True)
class CropLook:
    """One candidate of one image.

    Attributes:
        name: Of the candidate.
        probability: The proposer's, 0 to 1.
        confidence: The classifier's probability of the true class in this crop, 0 to 1.
        predicted_name: The class that it sees in this crop.
        is_right: Whether that is the true class.
    """

    name: str
    probability: float
    confidence: float
    predicted_name: str
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class GalleryImage:
    """One validation image.

    Attributes:
        key: Of the sample.
        label: Index of its class.
        true_name: Name of its class.
        picture: The canvas, a data URI.
        heat: The proposer's map, a data URI, if it has one.
        crops: The K candidates.
        chosen: Which of them the proposer chose.
        best: On which the classifier is most confident of the true class.
        boxes: Of the objects, where known.
        is_regretted: Whether it is among the largest regrets of the split.
    """

    key: str
    label: int
    true_name: str
    picture: str
    heat: str | None
    crops: tuple[CropLook, ...]
    chosen: int
    best: int
    boxes: tuple[Place, ...]
    is_regretted: bool

    @property
    def choice(self) -> CropLook:
        """The chosen crop."""
        return self.crops[self.chosen]

    @property
    def regret(self) -> float:
        """Confidence lost by the choice against the best crop in hindsight, points."""
        return 100 * (self.crops[self.best].confidence - self.choice.confidence)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images and what a run made of them.

    Attributes:
        run: Its name.
        num_samples: Images of the split, from which these were taken.
        num_drawn: The first so many images are drawn, and the others have large regrets alone.
        num_regretted: Images with the largest regrets, among the drawn ones or not.
        places: Of the K candidates.
        images: In the order of the page.
        heat: The maps and their scale, if the proposer has maps.
        has_prior: Whether a score learnt for each place is added to the map's.
        note: What is missing, if anything.
    """

    run: str
    num_samples: int
    num_drawn: int
    num_regretted: int
    places: tuple[Place, ...]
    images: tuple[GalleryImage, ...]
    heat: HeatMaps | None
    has_prior: bool
    note: str | None

    @property
    def num_right(self) -> int:
        """Drawn images on which the run is right."""
        return sum(image.choice.is_right for image in self.images[: self.num_drawn])

    @property
    def has_boxes(self) -> bool:
        """Whether boxes of some objects are known."""
        return any(image.boxes for image in self.images)

    @property
    def classes(self) -> list[tuple[int, str, int]]:
        """Index and name of each class, and how many of the images have it."""
        counts = Counter((image.label, image.true_name) for image in self.images)
        return [(label, name, count) for (label, name), count in sorted(counts.items())]


def why_no_gallery(run: FinishedRun, shards: ShardFolder | None) -> str | None:
    """Say why what a run looked at cannot be shown; None where it can."""
    if shards is None:
        return "No shards were named, so there are no pictures; add --shards SHARDS."
    if shards.manifest.fingerprint != run.record.data.fingerprint:
        return (
            f"The shards in {shards.place} are not those of the runs, so there are no pictures; "
            "name the runs' own with --shards."
        )
    if run.logits is None:
        return f"The run {run.record.name} has lost its logits, so there are no pictures."
    return None


def pick_rows(
    keys: Sequence[str],
    logits: CropLogits,
    *,
    num_drawn: int = NUM_DRAWN,
    num_regretted: int = NUM_REGRETTED,
) -> Rows:
    """Pick the images by a rule that looks at no picture.

    Args:
        keys: Of the split's samples.
        logits: Of the same samples.
        num_drawn: Images with the smallest SHA-256 of their keys: the same in all shards that hold
            these keys, whatever was trained.
        num_regretted: Images with the largest regrets, however many have any.
    """
    by_hash = order_by_hash(keys)
    confidence_NK = confidence_in_label(logits)
    chosen_N = confidence_NK.gather(1, logits.chosen_N[:, None])[:, 0]
    regret_N = (confidence_NK.amax(1) - chosen_N).tolist()
    by_regret = sorted((n for n in by_hash if regret_N[n] > 0), key=lambda n: -regret_N[n])
    return Rows(tuple(by_hash[:num_drawn]), tuple(by_regret[:num_regretted]))


def confidence_in_label(logits: CropLogits) -> Tensor:
    """Give the classifier's probability of the true class in each crop, float32 `(N, K)`."""
    return (-logits.losses_NK).exp()


def make_gallery(
    run: FinishedRun,
    logits: CropLogits,
    shards: ShardFolder,
    *,
    rows: Rows,
    maps_BMN: Tensor | None,
    boxes: Mapping[str, Sequence[ObjectBox]] | None = None,
    note: str | None = None,
) -> Gallery:
    """Show what a run looked at in some validation images.

    Args:
        run: Its policy chooses.
        logits: That run's logits on these shards.
        shards: Those that the run was trained on.
        rows: Images to show.
        maps_BMN: The proposer's maps of `rows.all`, in logits, if it has any.
        boxes: Boxes of the objects, by the path of the source's image.
        note: What is missing, if anything.
    """
    reader, config = shards.reader("val"), run.record.config
    heat = None if maps_BMN is None else draw_heat(maps_BMN)
    images = tuple(
        _image(
            reader.read(row), row, logits, shards,
            candidates=candidate_indices(config, shards.crop_layout),
            heat=heat.images[number] if heat else None,
            boxes=boxes or {},
            is_regretted=row in rows.regretted,
        )
        for number, row in enumerate(rows.all)
    )  # fmt: skip
    normalised = shards.crop_layout.normalised()
    return Gallery(
        run=run.record.name,
        num_samples=len(reader),
        num_drawn=len(rows.drawn),
        num_regretted=len(rows.regretted),
        places=tuple(
            Place.of(normalised[k]) for k in candidate_indices(config, shards.crop_layout)
        ),
        images=images,
        heat=heat,
        has_prior=config.position_prior,
        note=note,
    )


def _image(
    sample: Sample,
    row: int,
    logits: CropLogits,
    shards: ShardFolder,
    *,
    candidates: Sequence[int],
    heat: str | None,
    boxes: Mapping[str, Sequence[ObjectBox]],
    is_regretted: bool,
) -> GalleryImage:
    layout, names = shards.crop_layout, shards.manifest.class_names
    confidence_K = logits.logits_NKC[row].softmax(1)[:, sample.label]
    columns = (logits.probabilities_NK[row], confidence_K, logits.predicted_NK[row])
    crops = tuple(
        CropLook(
            name=layout.names[k],
            probability=probability,
            confidence=confidence,
            predicted_name=names[predicted],
            is_right=predicted == sample.label,
        )
        for k, probability, confidence, predicted in zip(
            candidates, *(column.tolist() for column in columns), strict=True
        )
    )
    return GalleryImage(
        key=sample.key,
        label=sample.label,
        true_name=names[sample.label],
        picture=_shown(canvas_picture(sample.crops, layout)),
        heat=heat,
        crops=crops,
        chosen=int(logits.chosen_N[row]),
        best=int(confidence_K.argmax()),
        boxes=tuple(Place.of(box) for box in boxes.get(sample.meta.path, ())),
        is_regretted=is_regretted,
    )


def _shown(picture: Image.Image) -> str:
    if picture.width > PICTURE_PX:
        picture = picture.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return data_uri(picture, "JPEG", quality=JPEG_QUALITY)
