"""Evaluations, audits and estimates in words and columns, for the terminal."""

from collections.abc import Iterator, Sequence

from pipeline.common.errors import printable
from training.audit.boxes import BoxFigures
from training.audit.headroom import Gain, Headroom, Shown
from training.audit.priced import PricedPoint
from training.audit.verdict import Audit, Rival
from training.score.metrics import Evaluation
from training.study.finished import Spread
from training.study.paired import name_seeds, write_p

WIDTH = 56
ORACLE = "the oracle: another seed's crop of least loss"


def audit_text(found: Audit) -> str:
    """Lay an audit out for people, the verdict first."""
    return "\n".join(_lines(found))


def _lines(found: Audit) -> Iterator[str]:
    yield found.verdict
    yield from found.notes
    yield ""
    yield f"{found.arm}, {name_seeds(found.seeds)}, {found.num_samples} images, top-1 in %"
    if len(found.seeds) > 1:
        yield "p: bootstrap over images and seeds; t: p of a paired t over the seeds"
    yield _line("the chosen crop", _spread(found.top1), f"{found.macs / 1e6:.1f} M MACs")
    for rival in found.rivals:
        yield _line(rival.name, _spread(rival.top1), _beside(rival, found.seeds))
    if found.oracle is not None:
        yield _line(ORACLE, _spread(found.oracle))
    yield _line("any crop right, in hindsight", _spread(found.any_right))
    yield ""
    yield "selection skill: 0 is chance, 1 what it stands beside"
    for name, skill in (
        ("(chosen - random) / (oracle - random)", found.skill),
        ("(chosen - random) / (any crop right - random)", found.any_right_skill),
    ):
        if skill is not None:
            yield _line(name, _spread(skill, 2))
    yield ""
    yield "how often each crop is chosen, %"
    for name, share in zip(found.crops, found.shares, strict=True):
        yield _line(name, f"{100 * share:.1f}")
    yield _line("entropy of the mean choice, nats", _spread(found.entropy_of_mean, 2))
    yield _line("mean entropy of a choice, nats", _spread(found.mean_entropy, 2))
    if found.latency is not None:
        yield ""
        yield "one image on this machine, ms"
        yield _line("proposer", f"{found.latency.proposer_ms:.2f}")
        yield _line("classifier", f"{found.latency.classifier_ms:.2f}")
        rate = found.latency.proposer_images_per_s
        yield _line("proposer on one core, images/s in batches of 64", f"{rate:.0f}")
    if found.boxes is not None:
        yield from _box_lines(found.boxes)


def _beside(rival: Rival, seeds: tuple[int, ...]) -> str:
    told = f"{rival.macs / 1e6:.1f} M MACs, choosing {rival.points:+.1f}"
    if rival.test is None:
        return told
    test = rival.test.times(rival.tries)
    told = f"{told} (95 % {test.low:+.1f} to {test.high:+.1f}), p {write_p(test.p)}"
    if test.p_over_seeds is not None:
        told = f"{told}, t {write_p(test.p_over_seeds)}"
    return told if test.seeds == seeds else f"{told}, {name_seeds(test.seeds)} alone"


def _box_lines(boxes: BoxFigures) -> Iterator[str]:
    yield ""
    yield f"the objects of {boxes.num_samples} images with boxes, % inside the crop"
    yield _line("the chosen crop", f"{100 * boxes.coverage:.1f}")
    if boxes.coverage_centre is not None:
        yield _line("the centre crop", f"{100 * boxes.coverage_centre:.1f}")
    yield _line("a random crop", f"{100 * boxes.coverage_random:.1f}")
    yield _line("the crop that covers most", f"{100 * boxes.coverage_best:.1f}")
    yield _line("chosen crops with the middle of a box inside", f"{100 * boxes.pointing:.1f}")
    yield _line("random crops with it", f"{100 * boxes.pointing_random:.1f}")
    if boxes.pointing_map is not None:
        yield _line("smoothed maps with their maximum in a box", f"{100 * boxes.pointing_map:.1f}")
        yield _line("images with their middle inside one", f"{100 * boxes.pointing_centre:.1f}")
    if boxes.top1 is not None:
        yield _line("top-1 of the chosen crop", f"{boxes.top1:.1f}")
        yield _line("top-1 of the crop that fits the object best", f"{boxes.top1_best:.1f}")


def price_text(point: PricedPoint) -> str:
    """Lay one price of the whole canvas out for people."""
    rows = (
        ("policy, top-1, %", point.top1),
        ("MACs of one image, mean, million", point.macs / 1e6),
        ("bought it, % of the images", 100 * point.share),
    )
    lines = [f"  {name:<32} {figure:8.2f}" for name, figure in rows]
    return "\n".join([f"the whole canvas at a price of {point.price:g}", *lines])


def _line(name: str, value: str, told: str = "") -> str:
    return f"  {name:<{WIDTH}}{value:>14}  {told}".rstrip()


def _spread(value: Spread, digits: int = 1) -> str:
    sd = "" if value.sd is None else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{sd}"


def evaluation_text(evaluation: Evaluation, class_names: tuple[str, ...]) -> str:
    """Lay an evaluation out for people."""
    fixed = zip([f"{name} always" for name in evaluation.crops], evaluation.top1_crops, strict=True)
    accuracies = [
        ("policy", evaluation.top1),
        *fixed,
        ("random crop", evaluation.top1_random),
        ("mean of all crops", evaluation.top1_mean),
        ("any crop right, in hindsight", evaluation.top1_any_right),
    ]
    shares = [(name, 100 * share) for name, share in zip(
        evaluation.crops, evaluation.shares, strict=True)]  # fmt: skip
    costs = [
        ("proposer", evaluation.proposer_macs / 1e6),
        ("classifier", evaluation.classifier_macs / 1e6),
    ]
    classes = list(zip(map(printable, class_names), evaluation.top1_classes, strict=True))
    lines = []
    for title, rows in (
        (f"top-1 of {evaluation.num_samples} images, %", accuracies),
        ("how often each crop is chosen, %", shares),
        ("cost of one image, million MACs", costs),
        ("top-1 by class, %", classes),
    ):
        lines += [title, *(f"  {name:<32} {figure:8.2f}" for name, figure in rows)]
    return "\n".join(lines)


def headroom_text(found: Headroom, shown: Sequence[Shown]) -> str:
    """Lay an estimate out for people, the verdict first, and what trainings showed last."""
    return "\n".join(
        (found.verdict, "", *_estimate_lines(found), *_shown_lines(shown, found.crops))
    )


def _estimate_lines(found: Headroom) -> Iterator[str]:
    yield f"two small classifiers, mean of both, {found.num_samples} images, top-1 in %"
    for name, top1 in (
        ("the largest class always", found.top1_largest),
        ("a random crop", found.top1_random),
        *[(f"{crop} always", top1) for crop, top1 in
          zip(found.crops, found.top1_crops, strict=True)],
        ("the best fixed crop, picked by the other classifier", found.top1_fixed),
        ("the mean of all crops, at all their compute", found.top1_mean),
        ("the crop that a fitted proposer chooses", found.top1_fitted),
        ("the oracle: the other's crop of least loss", found.top1_oracle),
        ("any crop right, in hindsight, which flatters", found.top1_any_right),
    ):  # fmt: skip
        yield _line(name, f"{top1:.1f}")
    yield ""
    yield "points, with 95 % over the images"
    yield _gain("learnt: the mean of all crops above the largest class", found.learnt)
    yield _gain("room: the oracle above the best fixed crop", found.room)
    yield _gain("gain: the fitted proposer above the best fixed crop", found.gain)
    yield "all of it is of these classifiers; a better one may leave more room, or less"


def _gain(name: str, gain: Gain) -> str:
    return _line(name, f"{gain.points:+.1f}", f"{gain.low:+.1f} to {gain.high:+.1f}")


def _shown_lines(shown: Sequence[Shown], crops: tuple[str, ...]) -> Iterator[str]:
    for arm in shown:
        among = "" if arm.crops == crops else f" among other crops, {', '.join(arm.crops)}"
        yield ""
        yield f"what training showed: {arm.arm}, {name_seeds(arm.seeds)}, top-1 in %{among}"
        yield _line("the best fixed crop", _spread(arm.fixed))
        yield _line("the chosen crop", _spread(arm.chosen), _above(arm.chosen, arm.fixed))
        if arm.oracle is not None:
            yield _line(ORACLE, _spread(arm.oracle), _above(arm.oracle, arm.fixed))
        yield _line("any crop right, in hindsight, which flatters",
                    _spread(arm.any_right), _above(arm.any_right, arm.fixed))  # fmt: skip


def _above(top1: Spread, fixed: Spread) -> str:
    return f"{top1.mean - fixed.mean:+.1f}"
