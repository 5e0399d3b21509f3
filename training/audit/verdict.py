"""Whether choosing is worth it, from an arm's tables and its neighbours': `srp-train audit RUN`.

Axes: N samples of the validation split, K candidates.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import NormalDist
from typing import Any, NamedTuple

from torch import Tensor

from training.audit.boxes import BoxFigures
from training.score.cost import Latency
from training.score.crop_logits import CropLogits
from training.score.metrics import final_hits
from training.study.finished import Arm, Spread, spread
from training.study.paired import (
    LEAST_IMAGES,
    PairedTest,
    compare_differences,
    few_seeds,
    paired_test,
)
from training.study.sentences import SIGNIFICANCE

FORMAT = "srp-audit/3"  # 2 had a curve of prices of the whole canvas
WORTH_IT, NOT_WORTH_IT, NOT_SHOWN = "worth it", "not worth it", "not shown"
SAME_COST = 1.02  # the proposer may cost this much of the classifier, and a rival is still equal


class Rival(NamedTuple):
    """Another way to spend about the same, or more.

    `points` is what choosing has above it, with the seeds of the paired test where there is one.
    `test` is None where none can be made. `macs` are for one image. `picked_from` is how many crops
    the rival was picked from, on the very images that are scored.
    """

    name: str
    top1: Spread
    macs: int
    points: float
    test: PairedTest | None
    picked_from: int = 1

    @property
    def p(self) -> float | None:
        """Of the test, counted as often as `tries` says; None without one."""
        return self.test.times(self.tries).p if self.test else None

    @property
    def told(self) -> str:
        """Say by which test it is told from the choice, for people; empty without one."""
        if self.test is None:
            return ""
        picked = f", times the {self.tries} crops that it was picked from"
        return self.test.times(self.tries).told + (picked if self.tries > 1 else "")

    @property
    def tries(self) -> int:
        """How often its p counts: the best of K crops is above the choice by luck K times as often.

        Below the choice it has been favoured, and what is shown all the same is shown.
        """
        return self.picked_from if self.points < 0 else 1

    @property
    def differs(self) -> bool:
        """Whether a test tells it from the choice by more than chance."""
        return self.p is not None and self.p < SIGNIFICANCE

    @property
    def level(self) -> float:
        """What the interval covers that its p goes with, %."""
        return 100 * (1 - SIGNIFICANCE / self.tries)

    @property
    def least_shown(self) -> float:
        """The smallest difference that could have been told from chance, points."""
        ends = [NormalDist().inv_cdf(1 - SIGNIFICANCE / 2 / tries) for tries in (self.tries, 1)]
        return self.test.least_shown * ends[0] / ends[1] if self.test else math.inf


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is known of one arm that chooses; accuracies are top-1, %.

    Attributes:
        arm: Its name.
        seeds: Of its runs.
        num_samples: Of the validation split.
        top1: Of the chosen crop.
        macs: For one image, proposer and classifier.
        rivals: Of the arm's own classifiers, then of runs beside it that do not choose.
        any_right: Of any crop right, in hindsight.
        oracle: Of the crop on which another seed's classifier loses least; None with one seed.
        skill: (chosen - random) / (oracle - random); None without room or an oracle.
        any_right_skill: (chosen - random) / (any right - random); None without room.
        crops: Names of the candidates.
        shares: How often each is chosen, 0 to 1.
        entropy_of_mean: Of the mean choice, nats.
        mean_entropy: Of each image's choice, nats.
        latency: At batch size 1, or None.
        boxes: How well the chosen crop covers the objects, or None.
    """

    arm: str
    seeds: tuple[int, ...]
    num_samples: int
    top1: Spread
    macs: int
    rivals: tuple[Rival, ...]
    any_right: Spread
    oracle: Spread | None
    skill: Spread | None
    any_right_skill: Spread | None
    crops: tuple[str, ...]
    shares: tuple[float, ...]
    entropy_of_mean: Spread
    mean_entropy: Spread
    latency: Latency | None = None
    boxes: BoxFigures | None = None

    @property
    def equals(self) -> list[Rival]:
        """Rivals that cost no more and were tested, those first that are furthest above."""
        return sorted(
            (rival for rival in self.rivals if rival.test and rival.macs <= SAME_COST * self.macs),
            key=lambda rival: rival.points,
        )

    @property
    def answer(self) -> str:
        """Say whether to choose: one of `WORTH_IT`, `NOT_WORTH_IT`, `NOT_SHOWN`."""
        return self._decided[0]

    @property
    def decisive(self) -> Rival | None:
        """The rival that the answer is due to: the strongest of those that decide it."""
        return self._decided[1]

    @cached_property
    def _decided(self) -> tuple[str, Rival | None]:
        """Give the answer, and the rival that it is due to.

        Worth it is what is shown to be better than every rival that costs no more; not worth it,
        what any of them is shown to be better than. All else is not shown, equal accuracy as well:
        a paired test that finds no difference has not found that there is none.
        """
        equals = self.equals
        for rival in equals:
            if rival.differs and rival.points < 0:
                return NOT_WORTH_IT, rival
        for rival in equals:
            if not rival.differs:
                return NOT_SHOWN, rival
        return (WORTH_IT, equals[0]) if equals else (NOT_SHOWN, None)

    @property
    def verdict(self) -> str:
        """Say in one sentence whether to choose, and by which test."""
        rival = self.decisive
        if rival is None or rival.test is None:
            return "Choosing is not shown to be worth it here: no rival of equal cost has a test."
        if self.answer == WORTH_IT:
            return (
                f"Choosing is worth it here: {rival.points:+.1f} points against {rival.name}, the "
                f"best that costs no more ({rival.told})."
            )
        if self.answer == NOT_WORTH_IT:
            return (
                f"Choosing is not worth it here: take {rival.name}, {-rival.points:.1f} points "
                f"above the chosen crop at no more compute ({rival.told})."
            )
        return (
            "Choosing is not shown to be worth it here, nor to be not worth it: "
            f"{rival.points:+.1f} points against {rival.name} at equal compute can be chance "
            f"({rival.told})."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Say in sentences what the verdict is to be read with."""
        rival = self.decisive
        if rival is None or rival.test is None:
            return ()
        limit = ""
        if self.answer == NOT_SHOWN:
            seeds = f"{len(rival.test.seeds)} seed{'s' if len(rival.test.seeds) > 1 else ''}"
            limit = (
                f"{self.num_samples} images and {seeds} could have shown a difference of "
                f"{rival.least_shown:.2f} points or more: half the width of its {rival.level:.3g} "
                f"% interval, and no less than {LEAST_IMAGES} images."
            )
        rests_on = self.equals if self.answer == WORTH_IT else [rival]
        fewest = min(len(other.test.seeds) for other in rests_on if other.test)
        return tuple(filter(None, (limit, few_seeds(fewest))))

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs, answer and verdict first."""
        told = {
            "format": FORMAT,
            "answer": self.answer,
            "verdict": self.verdict,
            "notes": list(self.notes),
        }
        fields = _plain(self)
        for rival, row in zip(self.rivals, fields["rivals"], strict=True):
            row["p"] = rival.p
        return {**told, **fields}


def _plain(value: Any) -> Any:
    """Turn dataclasses and named tuples into dicts of their fields, all the way down."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def audit(arm: Arm, others: Iterable[Arm]) -> Audit:
    """Compare an arm's choice with every other way to use its classifiers, and with other arms.

    Args:
        arm: Finished runs that choose, each with its table.
        others: Arms on the same data; those that choose are left out.
    """
    fixed = [other for other in others if not other.config.selects]
    beside = [_beside(arm, other) for other in fixed if other.config.fold is None]
    return Audit(
        arm=arm.name,
        seeds=arm.seeds,
        num_samples=arm.evaluations[0].num_samples,
        top1=arm.top1,
        macs=arm.macs,
        rivals=(*_own_rivals(arm), *beside),
        any_right=arm.top1_any_right,
        oracle=arm.top1_oracle,
        skill=arm.skill,
        any_right_skill=arm.any_right_skill,
        crops=arm.crops,
        shares=arm.shares,
        entropy_of_mean=arm.entropy_of_mean,
        mean_entropy=arm.mean_entropy,
    )


def _of(arm: Arm) -> list[CropLogits]:
    return [run.logits for run in arm.runs if run.logits is not None]


def _mean(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _own_rivals(arm: Arm) -> list[Rival]:
    """Score what the arm's own classifiers reach without the choice."""
    cost, num_crops = arm.classifier_macs, len(arm.crops)
    named = {"the whole image": "full", "the centre crop": "centre"}
    rivals = [
        _rival(arm, f"{text}, same classifier", partial(_always, arm.crops.index(name)))
        for text, name in named.items()
        if name in arm.crops
    ]
    best = _rival(arm, "the best fixed crop, same classifier", _best_fixed)
    rivals.append(best._replace(picked_from=num_crops))
    random = _test(arm, lambda logits: final_hits(logits, "random"))
    averaged = _test(arm, lambda logits: final_hits(logits, "mean"))
    return [
        *rivals,
        Rival("a random crop, same classifier", arm.top1_random, cost, random.points, random),
        Rival(
            "the mean of all, same classifier", arm.top1_mean, num_crops * cost, averaged.points,
            averaged,
        ),
    ]  # fmt: skip


def _always(crop: int, _table: CropLogits) -> int:
    return crop


def _best_fixed(logits: CropLogits) -> int:
    """Choose the crop that is best on the very split that is scored, which favours the rival."""
    return int(logits.right_NK.sum(0).argmax())


def _rival(arm: Arm, name: str, choose: Callable[[CropLogits], int]) -> Rival:
    """Score one crop for all images, which each logits may choose for itself."""
    top1 = spread(_mean(logits.right_NK[:, choose(logits)]) for logits in _of(arm))
    test = _test(arm, lambda logits: logits.right_NK[:, choose(logits)])
    return Rival(name, top1, arm.classifier_macs, test.points, test)


def _test(arm: Arm, rival: Callable[[CropLogits], Tensor]) -> PairedTest:
    """Test the choice against a rival's right answers, image by image, over the seeds."""
    return compare_differences({
        run.record.config.seed: final_hits(run.logits, arm.policy) - rival(run.logits).double()
        for run in arm.runs if run.logits is not None
    })  # fmt: skip


def _beside(arm: Arm, other: Arm) -> Rival:
    test = paired_test(arm, other)
    points = test.points if test else arm.top1.mean - other.top1.mean
    return Rival(
        f"{other.name}, a classifier of its own", other.top1, other.classifier_macs, points, test
    )
