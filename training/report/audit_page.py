"""An audit -> one self-contained HTML page, its picture as PNG, and its figures as JSON."""

import base64
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.common.atomic_io import write_file
from training.audit.boxes import read_boxes
from training.audit.run import Audited
from training.audit.saliency import read_maps
from training.audit.verdict import Audit
from training.config import TrainConfig
from training.report.charts.accuracy import accuracy_by_macs, audit_marks
from training.report.charts.svg import colour_of
from training.report.gallery import Gallery, make_gallery, pick_rows, why_no_gallery
from training.report.html import fill_template
from training.report.result_picture import draw_result
from training.saved.record import DataRecord, describe_hardware
from training.study.finished import FREE_OPTIONS, Arm, FinishedRun, differing_options
from training.study.sentences import describe_data, is_drawn

TEMPLATE = "audit.html.j2"
COLLAPSED = 0.1  # of the most entropy: below, the crops are hardly used
UNDECIDED = 0.9  # of it: above, the proposer is hardly sure of any image


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Single images and what was chosen on them.

    Attributes:
        gallery: What the run looked at.
        result: PNG of what the proposer and each rival chose.
    """

    gallery: Gallery
    result: bytes

    @property
    def result_uri(self) -> str:
        """The PNG for the page itself."""
        return f"data:image/png;base64,{base64.b64encode(self.result).decode()}"


@dataclass(frozen=True, kw_only=True)
class AuditPage:
    """All that the template shows.

    Attributes:
        audit: The figures.
        arm: The audited one.
        data: Its data.
        data_line: The data in one sentence.
        is_drawn: Whether the images are srp's own drawings.
        chart: Accuracy against MACs, an SVG.
        collapse: What the entropies say, in a sentence.
        run: The run that was named; the images show its choices.
        pictures: Single images, if they can be shown.
        no_pictures: Why they cannot.
        arms: The audited one, then those that it was compared with.
        options: Names of the options that differ between them.
        changed: Options of the audited arm that are not the defaults, with their values.
        machine: Hardware of this audit.
    """

    audit: Audit
    arm: Arm
    data: DataRecord
    data_line: str
    is_drawn: bool
    chart: Markup
    collapse: str
    run: FinishedRun
    pictures: Pictures | None
    no_pictures: str | None
    arms: tuple[Arm, ...]
    options: tuple[str, ...]
    changed: tuple[tuple[str, object], ...]
    machine: str

    @property
    def gallery(self) -> Gallery | None:
        """What the run looked at."""
        return self.pictures.gallery if self.pictures else None

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """All runs that a figure of the page comes from."""
        return tuple(run for arm in self.arms for run in arm.runs)


def write_audit(audited: Audited, folder: Path) -> tuple[Path, ...]:
    """Write an audit for people and for programs.

    Args:
        audited: What to write.
        folder: Made if need be.

    Returns:
        The page, the JSON, and the picture where there is one.
    """
    page = make_audit_page(audited)
    html = fill_template(TEMPLATE, page)
    fields = json.dumps(audited.audit.to_json(), indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    written = {"audit.html": html.encode(), "audit.json": f"{fields}\n".encode()}
    if page.pictures:
        written["audit.png"] = page.pictures.result
    for name, content in written.items():
        write_file(folder / name, content)
    return tuple(folder / name for name in written)


def make_audit_page(audited: Audited) -> AuditPage:
    """Turn an audit into all that its page shows."""
    arm, data = audited.arm, audited.run.record.data
    fixed = [o for o in audited.others if not o.config.selects and o.config.fold is None]
    arms = (arm, *fixed)
    svg = accuracy_by_macs(audit_marks(audited.audit, colour_of(arm)))
    return AuditPage(
        audit=audited.audit,
        arm=arm,
        data=data,
        data_line=describe_data(data, ""),
        is_drawn=is_drawn(data),
        chart=Markup(svg),  # noqa: S704 matplotlib escaped its text
        collapse=describe_collapse(audited.audit),
        run=audited.run,
        pictures=_draw(audited),
        no_pictures=why_no_gallery(audited.run, audited.shards),
        arms=arms,
        options=differing_options(arms),
        changed=_changed(arm.config),
        machine=describe_hardware(audited.process.device),
    )


def _changed(config: TrainConfig) -> tuple[tuple[str, object], ...]:
    """List the options that are not the defaults, seed and machine aside."""
    return tuple(
        (field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in FREE_OPTIONS and getattr(config, field.name) != field.default
    )


def _draw(audited: Audited) -> Pictures | None:
    run, shards = audited.run, audited.shards
    if run.logits is None or why_no_gallery(run, shards) is not None:
        return None
    rows = pick_rows(shards.reader("val").keys, run.logits)
    maps_BMN = read_maps(audited.model, shards, rows.all, audited.process)
    boxes = None if audited.boxes is None else read_boxes(audited.boxes)
    return Pictures(
        gallery=make_gallery(run, run.logits, shards, rows=rows, maps_BMN=maps_BMN, boxes=boxes),
        result=draw_result(audited, run.logits, rows.drawn, maps_BMN),
    )


def describe_collapse(found: Audit) -> str:
    """Say what the entropies of the choice mean."""
    most = math.log(len(found.crops))
    used, unsure = found.entropy_of_mean.mean / most, found.mean_entropy.mean / most
    favourite = found.crops[found.shares.index(max(found.shares))]
    share = f"{100 * max(found.shares):.0f} % of the images get {favourite}"
    if used < COLLAPSED:
        return f"The choice has collapsed to one crop: {share}."
    if unsure > UNDECIDED:
        return f"The choice has not collapsed, but is hardly sure of any image; {share}."
    return f"The choice has not collapsed: {share}."
