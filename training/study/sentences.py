"""The report's sentences, computed from the figures.

Only a paired test may say "more accurate" or "less accurate".
"""

import math
from collections.abc import Sequence

from training.saved.record import DataRecord
from training.study.finished import Arm, best_arm
from training.study.paired import few_seeds, paired_test, write_p

SIGNIFICANCE = 0.05
# The classes of the data set that srp draws itself; `training` does not import its drawer.
DRAWN_CLASSES = frozenset(
    ("arrow", "crescent", "cross", "fish", "flower", "house", "ladder", "ring", "spiral", "star")
)
NAMED_CLASSES = 12
UNPAIRED = 1.96 * math.sqrt(2)  # sds of one figure within which 95 % of chance differences lie


def is_drawn(data: DataRecord) -> bool:
    """Whether the images are srp's own drawings, judged by their class folders."""
    return set(data.classes) == DRAWN_CLASSES


def describe_data(data: DataRecord, note: str) -> str:
    """Describe the training and validation data in one line."""
    names = ", ".join(data.class_names[:NAMED_CLASSES])
    more = ", …" if len(data.class_names) > NAMED_CLASSES else ""
    return (
        f"Ran on {note + ': ' if note else ''}{len(data.classes)} classes ({names}{more}), "
        f"{data.num_train:,} training and {data.num_val:,} validation images, "
        f"canvas {data.spec.canvas_size} px, crops {data.spec.crop_size} px."
    )


def summarise_arms(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Compare the best arm that chooses with the crops that need no choice.

    Returns:
        Sentences, the first of which is the answer, with its reason, and stands alone.
    """
    selecting = [arm for arm in arms if arm.config.selects]
    best = best_arm(selecting)
    baselines = [
        found for found in (
            best_arm(arm for arm in arms if arm.policy == "whole"),
            best_arm(arm for arm in arms if arm.policy == "centre"),
            best_arm(arm for arm in selecting if arm.family == "predecessor"),
        ) if found is not None and found is not best
    ]  # fmt: skip
    if best is None:
        plain = "; ".join(f"{arm.name} reaches {accuracy(arm)}" for arm in arms)
        return f"No run chose its crop: {plain}.", describe_noise(arms)
    verdicts = [describe_difference(best, arm, num_tried=len(selecting)) for arm in baselines]
    place = (
        f"{best.name}, the only arm that chooses a crop,"
        if len(selecting) == 1
        else f"Of {len(selecting)} arms that choose a crop, the most accurate is {best.name}: it"
    )
    head = f"{place} reaches {accuracy(best)} top-1 with {describe_cost(best)}."
    answer = answer_question(best, baselines, num_tried=len(selecting))
    return answer, head, *verdicts, describe_skill(best), describe_noise([best, *baselines])


def answer_question(best: Arm, baselines: Sequence[Arm], *, num_tried: int) -> str:
    """Say whether choosing is worth it on this data, which the whole image decides.

    Args:
        best: The most accurate arm that chooses.
        baselines: What it is compared with.
        num_tried: Arms from which it was picked.
    """
    whole = next((arm for arm in baselines if arm.policy == "whole"), None)
    test = None if whole is None else paired_test(best, whole)
    if whole is None or test is None:
        return (
            "Whether choosing is worth it is not known: no run of the whole image with the same "
            "seed is beside it."
        )
    test = test.times(num_tried)
    figures = (
        f"{best.name} {best.top1.mean:.1f} vs {whole.name} {whole.top1.mean:.1f} %, "
        f"{test.points:+.1f} points, p {write_p(test.p)}"
    )
    reason = give_reason(best, whole)
    if test.p >= SIGNIFICANCE:
        return f"Choosing is not shown to be worth it here: {figures}. {reason}"
    if test.points < 0:
        return f"Choosing is not worth it here; take the whole image: {figures}. {reason}"
    return f"Choosing is worth it here, at the same compute for each image: {figures}. {reason}"


def give_reason(best: Arm, whole: Arm) -> str:
    """Compare what choosing adds to a random crop with what the whole image adds to it."""
    random = best.top1_random.mean
    chosen, instead = best.top1.mean - random, whole.top1.mean - random
    return (
        f"Where the classifier is right on {random:.1f} % of random crops, the choice adds "
        f"{chosen:+.1f} points, and the whole image in place of a crop {instead:+.1f}."
    )


def describe_cost(arm: Arm) -> str:
    """Say what one image costs, and which part of it is the choice."""
    part = 100 * arm.proposer_macs / arm.classifier_macs
    return f"one crop per image through the classifier, plus {part:.2g} % for the choice"


def describe_skill(arm: Arm) -> str:
    """Say what an arm's classifier reaches without its choice, and with the answer known."""
    text = (
        f"The classifier of {arm.name} reaches {arm.top1_random.mean:.1f} % on random crops and "
        f"{arm.top1_fixed.mean:.1f} % on its best fixed crop; any crop is right, in hindsight, for "
        f"{arm.top1_any_right.mean:.1f} % of the images"
    )
    if arm.top1_oracle is not None and arm.skill is not None:
        return (
            f"{text}; the oracle, another seed's crop of least loss, reaches "
            f"{arm.top1_oracle.mean:.1f} %, so selection skill is {arm.skill.mean:.2f}."
        )
    if arm.any_right_skill is not None:
        return f"{text}; selection skill against any crop right is {arm.any_right_skill.mean:.2f}."
    return f"{text}."


def describe_difference(ours: Arm, other: Arm, *, num_tried: int) -> str:
    """Compare an arm with a baseline in one sentence, as firmly as a paired test allows.

    Args:
        ours: The arm.
        other: The baseline.
        num_tried: Arms from which ours was picked by its accuracy; p is multiplied by it.
    """
    points = ours.top1.mean - other.top1.mean
    test = paired_test(ours, other)
    figures = f"{other.name} ({ours.top1.mean:.1f} vs {accuracy(other)})"
    if test is None:
        return (
            f"The difference from {figures} is {points:+.1f} points, without a paired test, since "
            "no seed has both tables."
        )
    test = test.times(num_tried)
    tried = "" if num_tried == 1 else f", times the {num_tried} arms it was picked from"
    tested = test.in_words + tried
    if test.p < SIGNIFICANCE:
        word = "more" if test.points > 0 else "less"
        return f"{ours.name} is {abs(points):.1f} points {word} accurate than {figures}: {tested}."
    return f"The difference from {figures}, {points:+.1f} points, can be chance: {tested}."


def describe_noise(arms: Sequence[Arm]) -> str:
    """Say how large a difference chance alone makes."""
    noise = max(binomial_sd(arm) for arm in arms)
    if all(len(arm.runs) == 1 for arm in arms):
        return (
            f"One seed: a figure's binomial sd is {noise:.1f} points, so differences below about "
            f"{UNPAIRED * noise:.1f} points can be chance, and another seed changes every figure."
        )
    text = (
        f"± is the sd over seeds; the images alone give each run a binomial sd of {noise:.1f} "
        "points."
    )
    if any(len(arm.runs) == 1 for arm in arms):
        text = f"{text} Tests of an arm with one seed are over images only."
    fewest = min(len(arm.runs) for arm in arms if len(arm.runs) > 1)
    return f"{text} {few_seeds(fewest)}".rstrip()


def binomial_sd(arm: Arm) -> float:
    """Give the sd of a run's accuracy over draws of the validation images, points."""
    part = arm.top1.mean / 100
    return 100 * math.sqrt(part * (1 - part) / arm.evaluations[0].num_samples)


def accuracy(arm: Arm) -> str:
    """Write an arm's top-1 with its spread and seeds."""
    if arm.top1.sd is None:
        return f"{arm.top1.mean:.1f} % (1 seed)"
    return f"{arm.top1.mean:.1f} ± {arm.top1.sd:.1f} % ({len(arm.runs)} seeds)"
