"""Evaluations, audits and estimates as text for the terminal: sentences, and tables by rich."""

import io
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.common.errors import printable
from training.audit.boxes import BoxScores
from training.audit.headroom import Gain, Headroom, Shown
from training.audit.priced import PricedPoint
from training.audit.verdict import Audit, Rival
from training.score.metrics import Evaluation
from training.study.dry_run import DryRun
from training.study.finished import Spread
from training.study.paired import name_seeds, write_p

WIDE = 1000  # characters: no terminal's width cuts a line that may be piped
ORACLE = "the oracle: another seed's crop of least loss"
Row = tuple[str, ...]


def audit_text(found: Audit) -> str:
    """Lay an audit out for people, the verdict first."""
    return "\n".join(_audit_parts(found)).rstrip("\n")


def _audit_parts(found: Audit) -> Iterator[str]:
    yield found.verdict
    yield from found.notes
    yield ""
    yield f"{found.arm}, {name_seeds(found.seeds)}, {found.num_samples} images"
    if len(found.seeds) > 1:
        yield "p: bootstrap over images and seeds; t: p of a paired t over the seeds"
    heads = ("", "top-1, %", "M MACs", "choosing, points", "95 %", "p", "t", "")
    yield _table("", _rival_rows(found), heads=heads)
    yield _table(
        "selection skill: 0 is chance, 1 the oracle, or any crop right",
        [
            (name, _spread(skill, 2))
            for name, skill in (
                ("(chosen - random) / (oracle - random)", found.skill),
                ("(chosen - random) / (any crop right - random)", found.any_right_skill),
            )
            if skill is not None
        ],
    )
    shares = [
        (name, f"{100 * share:.1f}") for name, share in zip(found.crops, found.shares, strict=True)
    ]
    yield _table("how often each crop is chosen, %", shares)
    yield _table(
        "entropy, nats",
        [
            ("of the mean choice", _spread(found.entropy_of_mean, 2)),
            ("of one image's choice, mean", _spread(found.mean_entropy, 2)),
        ],
    )
    if found.latency is not None:
        rows = [
            ("proposer, ms for one image", f"{found.latency.proposer_ms:.2f}"),
            ("classifier, ms for one image", f"{found.latency.classifier_ms:.2f}"),
            ("proposer on one core, images/s in batches of 64",
             f"{found.latency.proposer_images_per_s:.0f}"),
        ]  # fmt: skip
        yield _table("speed on this machine", rows)
    if found.boxes is not None:
        yield from _box_tables(found.boxes)


def _rival_rows(found: Audit) -> Iterator[Row]:
    yield "the chosen crop", _spread(found.top1), f"{found.macs / 1e6:.1f}"
    for rival in found.rivals:
        yield rival.name, _spread(rival.top1), f"{rival.macs / 1e6:.1f}", *_tested(rival, found)
    if found.oracle is not None:
        yield ORACLE, _spread(found.oracle)
    yield "any crop right, in hindsight", _spread(found.any_right)


def _tested(rival: Rival, found: Audit) -> Row:
    if rival.test is None:
        return (f"{rival.points:+.1f}",)
    test = rival.test.times(rival.tries)
    t = "" if test.p_over_seeds is None else _p(test.p_over_seeds)
    alone = "" if test.seeds == found.seeds else f"{name_seeds(test.seeds)} alone"
    interval = f"{test.low:+.1f} to {test.high:+.1f}"
    return f"{rival.points:+.1f}", interval, _p(test.p), t, alone


def _p(p: float) -> str:
    return write_p(p).removeprefix("= ")


def _box_tables(boxes: BoxScores) -> Iterator[str]:
    covered = [
        ("the chosen crop", boxes.coverage),
        ("the centre crop", boxes.coverage_centre),
        ("a random crop", boxes.coverage_random),
        ("the crop that covers most", boxes.coverage_best),
    ]
    title = f"the part of the object inside the crop, {boxes.num_samples} images with boxes, %"
    yield _table(title, _percentages(covered))
    pointed = [
        ("the middle of a box lies in the chosen crop", boxes.pointing),
        ("the middle of a box lies in a random crop", boxes.pointing_random),
    ]
    if boxes.pointing_map is not None:
        pointed += [
            ("the smoothed map's maximum lies in a box", boxes.pointing_map),
            ("the middle of the image lies in a box", boxes.pointing_centre),
        ]
    yield _table("pointing game, % of these images", _percentages(pointed))
    if boxes.top1 is not None:
        rows = [
            ("the chosen crop", f"{boxes.top1:.1f}"),
            ("the crop that fits the object best", f"{boxes.top1_best:.1f}"),
        ]
        yield _table("top-1 of these images, %", rows)


def _percentages(shares: Iterable[tuple[str, float | None]]) -> list[Row]:
    return [(name, f"{100 * share:.1f}") for name, share in shares if share is not None]


def price_text(point: PricedPoint) -> str:
    """Lay one price of the whole canvas out for people."""
    rows = [
        ("policy, top-1, %", f"{point.top1:.2f}"),
        ("MACs of one image, mean, million", f"{point.macs / 1e6:.2f}"),
        ("images that use the canvas, %", f"{100 * point.share:.2f}"),
    ]
    return _table(f"the whole canvas at a price of {point.price:g}", rows)


def evaluation_text(evaluation: Evaluation, class_names: tuple[str, ...]) -> str:
    """Lay an evaluation out for people."""
    crops = evaluation.crops
    accuracies = [
        ("policy", evaluation.top1),
        *zip([f"always {name}" for name in crops], evaluation.top1_crops, strict=True),
        ("random crop", evaluation.top1_random),
        ("mean of all crops", evaluation.top1_mean),
        ("any crop right, in hindsight", evaluation.top1_any_right),
    ]
    shares = zip(crops, [100 * share for share in evaluation.shares], strict=True)
    costs = [
        ("proposer", evaluation.proposer_macs / 1e6),
        ("classifier", evaluation.classifier_macs / 1e6),
    ]
    classes = zip(map(printable, class_names), evaluation.top1_classes, strict=True)
    return "".join(
        _table(title, [(name, f"{figure:.2f}") for name, figure in figures])
        for title, figures in (
            (f"top-1 of {evaluation.num_samples} images, %", accuracies),
            ("how often each crop is chosen, %", shares),
            ("cost of one image, million MACs", costs),
            ("top-1 by class, %", classes),
        )
    ).rstrip("\n")


def choice_text(evaluation: Evaluation) -> str:
    """Say in one sentence what the choice scores, and what the same classifier scores without."""
    crops = dict(zip(evaluation.crops, evaluation.top1_crops, strict=True))
    names = {"full": "the whole image", "centre": "the centre crop"}
    others = [(text, crops[crop]) for crop, text in names.items() if crop in crops]
    others.append(("a random crop", evaluation.top1_random))
    scores = ", ".join(f"{text} {top1:.1f} %" for text, top1 in others)
    return f"The chosen crop: {evaluation.top1:.1f} % right; with the same classifier, {scores}."


def plan_text(plan: DryRun) -> str:
    """Lay a run that is planned out for people, its time last."""
    heads = ("stage", "epochs", "steps", "cost, images", "time")
    stages = [
        (stage.name, _count(stage.epochs), _count(stage.steps), f"{stage.images:,.0f}",
         _time(stage.seconds))
        for stage in plan.stages
    ]  # fmt: skip
    macs = [("proposer", plan.proposer_macs), ("classifier", plan.classifier_macs)]
    sizes = [(f"shards of {split}", size) for split, size in plan.shard_bytes.items()]
    memory = [*plan.memory.items(), ("all", plan.peak_bytes)]
    parts = (
        f"{plan.run}: {plan.policy}, {plan.model}, batches of {plan.batch_size}, "
        f"{plan.num_train:,} training and {plan.num_val:,} validation images, {plan.num_crops} "
        "crops. Nothing was written.",
        _table("", stages, heads=heads),
        _table("cost of one image, million MACs", [(n, f"{each / 1e6:.2f}") for n, each in macs]),
        _table("read, MiB", _mib([*sizes, ("pixels of an epoch", plan.epoch_bytes)])),
        _table("memory beside the libraries, counted, MiB", _mib(memory)),
        f"about {_time(plan.seconds)}, at {plan.images_per_s:.0f} images/s: the median of "
        f"{plan.num_measured} steps just now, with what they waited for, on {plan.machine}",
    )
    return "\n".join(part.rstrip("\n") for part in parts)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _mib(sizes: Iterable[tuple[str, int]]) -> list[Row]:
    return [(name, f"{size / 2**20:,.1f}") for name, size in sizes]


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def headroom_text(found: Headroom, shown: Sequence[Shown]) -> str:
    """Lay an estimate out for people, the verdict first, and what trainings showed last."""
    parts = (found.verdict, "", *_estimate_tables(found), *_shown_tables(shown, found.crops))
    return "\n".join(parts).rstrip("\n")


def _estimate_tables(found: Headroom) -> Iterator[str]:
    accuracies = [
        ("the largest class always", found.top1_largest),
        ("a random crop", found.top1_random),
        *zip([f"{crop} always" for crop in found.crops], found.top1_crops, strict=True),
        ("the best fixed crop, picked by the other classifier", found.top1_fixed),
        ("the mean of all crops, at all their compute", found.top1_mean),
        ("the crop that a fitted proposer chooses", found.top1_fitted),
        ("the oracle: the other classifier's crop of least loss", found.top1_oracle),
        ("any crop right, known only in hindsight", found.top1_any_right),
    ]
    title = f"two small classifiers, mean of both, {found.num_samples} images, top-1, %"
    yield _table(title, [(name, f"{top1:.1f}") for name, top1 in accuracies])
    gains = [
        ("learnt: the mean of all crops above the largest class", found.learnt),
        ("room: the oracle above the best fixed crop", found.room),
        ("gain: the fitted proposer above the best fixed crop", found.gain),
    ]
    rows = [(name, *_gain(gain)) for name, gain in gains]
    yield _table("", rows, heads=("", "points", "95 % over the images"))
    yield "All figures are of these small classifiers; a better one may leave more room, or less."


def _gain(gain: Gain) -> Row:
    return f"{gain.points:+.1f}", f"{gain.low:+.1f} to {gain.high:+.1f}"


def _shown_tables(shown: Sequence[Shown], crops: tuple[str, ...]) -> Iterator[str]:
    for arm in shown:
        among = "" if arm.crops == crops else f" among other crops, {', '.join(arm.crops)}"
        rows: list[Row] = [("the best fixed crop", _spread(arm.fixed))]
        for name, top1 in (
            ("the chosen crop", arm.chosen),
            (ORACLE, arm.oracle),
            ("any crop right, known only in hindsight", arm.any_right),
        ):
            if top1 is not None:
                rows.append((name, _spread(top1), f"{top1.mean - arm.fixed.mean:+.1f}"))
        yield ""
        yield f"what training showed: {arm.arm}, {name_seeds(arm.seeds)}{among}"
        yield _table("", rows, heads=("", "top-1, %", "points above the fixed crop"))


def _spread(value: Spread, digits: int = 1) -> str:
    sd = "" if value.sd is None else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{sd}"


def _table(title: str, rows: Iterable[Row], *, heads: Row = ()) -> str:
    """Write a table without colours, whole whatever the terminal's width."""
    rows = list(rows)
    num_columns = max(map(len, (heads, *rows)), default=0)
    table = Table(box=None, show_header=bool(heads), pad_edge=False, padding=(0, 2, 0, 0))
    for head, _ in zip((*heads, *[""] * num_columns), range(num_columns), strict=False):
        table.add_column(head, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    console = Console(file=io.StringIO(), width=WIDE, color_system=None, emoji=False)
    with console.capture() as capture:
        console.print(table)
    lines = [f"  {line}".rstrip() for line in capture.get().splitlines()]
    return "\n".join([title, *lines] if title else lines) + "\n"
