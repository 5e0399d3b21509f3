"""Whether choosing is worth it, from an arm's logits and its neighbours': `srp-train audit RUN`.

Axes: N samples of the validation split, K candidates.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from statistics import NormalDist
from typing import Any

import msgspec
from torch import Tensor

from training.audit.boxes import BoxScores
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


class RivalKind(StrEnum):
    """What a rival shows the classifier, in words."""

    WHOLE = "the whole image"
    CENTRE = "the centre crop"
    BEST_FIXED = "the best fixed crop"
    RANDOM = "a random crop"
    MEAN = "the mean of all"
    OTHER_RUN = "a run that does not choose"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another way to spend about the same compute, or more.

    Attributes:
        kind: What the classifier sees.
        run: Arm of `OTHER_RUN`, which has a classifier of its own; the other kinds use the
            classifier of the audited arm.
        top1: Accuracy, %.
        macs: MACs of one image.
        points: Accuracy of the choice minus that of the rival, on the seeds of the test if any.
        test: Paired test of that difference; None where none is possible.
        picked_from: Number of crops that the rival was picked from, on the images that are scored.
    """

    kind: RivalKind
    run: str = ""
    top1: Spread
    macs: int
    points: float
    test: PairedTest | None
    picked_from: int = 1

    @property
    def name(self) -> str:
        """Name the rival and its classifier."""
        return (
            f"{self.run}, a classifier of its own" if self.run else f"{self.kind}, same classifier"
        )

    @property
    def p(self) -> float | None:
        """The p of the test, times `tries`; None without a test."""
        return self.test.times(self.tries).p if self.test else None

    @property
    def in_words(self) -> str:
        """Name the test and its p; empty without a test."""
        if self.test is None:
            return ""
        picked = f", times the {self.tries} crops that it was picked from"
        return self.test.times(self.tries).in_words + (picked if self.tries > 1 else "")

    @property
    def tries(self) -> int:
        """Factor of p: the best of K crops beats the choice by luck K times as often.

        Where the choice is more accurate, the pick favoured the rival, so p needs no factor.
        """
        return self.picked_from if self.points < 0 else 1

    @property
    def differs(self) -> bool:
        """Whether the difference from the choice is significant."""
        return self.p is not None and self.p < SIGNIFICANCE

    @property
    def level(self) -> float:
        """Coverage of the interval that corresponds to p, %."""
        return 100 * (1 - SIGNIFICANCE / self.tries)

    @property
    def least_shown(self) -> float:
        """The smallest difference that would have been significant, points."""
        ends = [NormalDist().inv_cdf(1 - SIGNIFICANCE / 2 / tries) for tries in (self.tries, 1)]
        return self.test.least_shown * ends[0] / ends[1] if self.test else math.inf


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The result of the audit of one arm; accuracies are top-1, %.

    Attributes:
        arm: Name of the arm.
        seeds: Seeds of its runs.
        num_samples: Images of the validation split.
        top1: Accuracy on the chosen crop.
        macs: MACs of one image, proposer and classifier.
        rivals: Other uses of the arm's classifiers, then runs in its folder that do not choose.
        any_right: Share of the images with any crop right, in hindsight.
        oracle: Accuracy on the crop on which another seed's classifier loses least; None with one
            seed.
        skill: (chosen - random) / (oracle - random); None without room or an oracle.
        any_right_skill: (chosen - random) / (any right - random); None without room.
        crops: Names of the candidates.
        shares: How often each is chosen, 0 to 1.
        entropy_of_mean: Entropy of the mean choice, nats.
        mean_entropy: Mean entropy of an image's choice, nats.
        latency: Time of both networks, or None.
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
    boxes: BoxScores | None = None

    @property
    def equals(self) -> list[Rival]:
        """Rivals that cost no more and were tested, the most accurate first."""
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
        """The most accurate of the rivals that decide the answer."""
        return self._decided[1]

    @cached_property
    def _decided(self) -> tuple[str, Rival | None]:
        """Give the answer and the rival that decides it.

        Choosing is worth it if it is significantly better than every rival that costs no more, and
        not worth it if any of them is significantly better. Everything else is not shown, also
        equal accuracy: a test that finds no difference does not show that there is none.
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
                f"Choosing is worth it here: the chosen crop is {rival.points:.1f} points more "
                f"accurate than {rival.name}, the strongest rival that costs no more "
                f"({rival.in_words})."
            )
        if self.answer == NOT_WORTH_IT:
            return (
                f"Choosing is not worth it here: use {rival.name}, which is {-rival.points:.1f} "
                f"points more accurate than the chosen crop at no more compute ({rival.in_words})."
            )
        return (
            "Choosing is not shown to be worth it here, nor shown not to be: "
            f"{rival.points:+.1f} points vs {rival.name} at equal compute can be chance "
            f"({rival.in_words})."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what limits the verdict, in sentences."""
        rival = self.decisive
        if rival is None or rival.test is None:
            return ()
        limit = ""
        if self.answer == NOT_SHOWN:
            seeds = f"{len(rival.test.seeds)} seed{'s' if len(rival.test.seeds) > 1 else ''}"
            limit = (
                f"{self.num_samples} images and {seeds} can show a difference of "
                f"{rival.least_shown:.2f} points or more: half the width of its {rival.level:.3g} "
                f"% interval, and at least {LEAST_IMAGES} images."
            )
        rests_on = self.equals if self.answer == WORTH_IT else [rival]
        fewest = min(len(other.test.seeds) for other in rests_on if other.test)
        return tuple(filter(None, (limit, few_seeds(fewest))))

    def to_json(self) -> dict[str, Any]:
        """Lay it out for programs, answer and verdict first."""
        fields = msgspec.to_builtins(self)
        for rival, row in zip(self.rivals, fields["rivals"], strict=True):
            row |= {"name": rival.name, "p": rival.p}
        head = {"format": FORMAT, "answer": self.answer, "verdict": self.verdict}
        return {**head, "notes": list(self.notes), **fields}


def audit(arm: Arm, others: Iterable[Arm]) -> Audit:
    """Compare an arm's choice with every other way to use its classifiers, and with other arms.

    Args:
        arm: Finished runs that choose, each with its logits.
        others: Arms on the same data; those that choose are ignored.
    """
    fixed = [other for other in others if not other.config.selects]
    separate = [_other_rival(arm, other) for other in fixed if other.config.fold is None]
    return Audit(
        arm=arm.name,
        seeds=arm.seeds,
        num_samples=arm.evaluations[0].num_samples,
        top1=arm.top1,
        macs=arm.macs,
        rivals=(*_own_rivals(arm), *separate),
        any_right=arm.top1_any_right,
        oracle=arm.top1_oracle,
        skill=arm.skill,
        any_right_skill=arm.any_right_skill,
        crops=arm.crops,
        shares=arm.shares,
        entropy_of_mean=arm.entropy_of_mean,
        mean_entropy=arm.mean_entropy,
    )


def _own_rivals(arm: Arm) -> list[Rival]:
    """Score other uses of the arm's own classifiers."""
    num_crops = len(arm.crops)
    rivals = []
    for kind, name in ((RivalKind.WHOLE, "full"), (RivalKind.CENTRE, "centre")):
        if name in arm.crops:
            rivals.append(_rival(arm, kind, partial(_right_on, arm.crops.index(name))))
    best = _rival(arm, RivalKind.BEST_FIXED, _right_on_best)
    random = _rival(arm, RivalKind.RANDOM, lambda logits: final_hits(logits, "random"))
    mean = _rival(arm, RivalKind.MEAN, lambda logits: final_hits(logits, "mean"))
    return [
        *rivals,
        replace(best, picked_from=num_crops),
        random,
        replace(mean, macs=num_crops * arm.classifier_macs),
    ]


def _right_on(crop: int, logits: CropLogits) -> Tensor:
    return logits.right_NK[:, crop]


def _right_on_best(logits: CropLogits) -> Tensor:
    """Take the crop that is best on the scored split itself, which favours the rival."""
    return logits.right_NK[:, int(logits.right_NK.sum(0).argmax())]


def _rival(arm: Arm, kind: RivalKind, right: Callable[[CropLogits], Tensor]) -> Rival:
    """Test the choice against a rival's right answers, image by image, over the seeds."""
    known = {run.record.config.seed: run.logits for run in arm.runs if run.logits is not None}
    right_SN = {seed: right(logits).double() for seed, logits in known.items()}
    test = compare_differences(
        {seed: final_hits(logits, arm.policy) - right_SN[seed] for seed, logits in known.items()}
    )
    top1 = spread(100 * float(right_N.mean()) for right_N in right_SN.values())
    return Rival(kind=kind, top1=top1, macs=arm.classifier_macs, points=test.points, test=test)


def _other_rival(arm: Arm, other: Arm) -> Rival:
    test = paired_test(arm, other)
    return Rival(
        kind=RivalKind.OTHER_RUN,
        run=other.name,
        top1=other.top1,
        macs=other.classifier_macs,
        points=test.points if test else arm.top1.mean - other.top1.mean,
        test=test,
    )
