"""An audit -> one self-contained HTML page, its picture as PNG, and its figures as JSON."""

import base64
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from pipeline.common.atomic_io import write_file
from training.audit.run import Audited
from training.audit.saliency import read_maps
from training.audit.verdict import Audit
from training.config import TrainConfig
from training.report.charts.accuracy import accuracy_by_macs, audit_marks
from training.report.charts.svg import colour_of
from training.report.contact_sheet import SheetRow, draw_sheet, drawn_rows, why_no_sheet
from training.report.heat_maps import HeatMaps, draw_heat
from training.report.html import fill_template
from training.report.result_picture import draw_result
from training.run.record import DataRecord, describe_hardware
from training.study.finished import FREE_OPTIONS, Arm, FinishedRun, differing_options
from training.study.sentences import describe_data, is_drawn

TEMPLATE = "audit.html.j2"
SHEET_ROWS = 8
COLLAPSED = 0.1  # of the most entropy: below, the crops are hardly used
UNDECIDED = 0.9  # of it: above, the proposer is hardly sure of any image


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Single images and what was chosen on them; empty, with a note, where there are none.

    Attributes:
        rows: Images with the run's choices.
        heat: The proposer's maps, if it has any.
        picture: PNG of what the proposer and each rival chose, if any.
        note: Why there are no images.
    """

    rows: tuple[SheetRow, ...] = ()
    heat: HeatMaps | None = None
    picture: bytes = b""
    note: str | None = None

    @property
    def picture_uri(self) -> str:
        """The picture for the page itself."""
        return f"data:image/png;base64,{base64.b64encode(self.picture).decode()}"


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
        choices: Single images.
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
    choices: Choices
    arms: tuple[Arm, ...]
    options: tuple[str, ...]
    changed: tuple[tuple[str, object], ...]
    machine: str

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
    if page.choices.picture:
        written["audit.png"] = page.choices.picture
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
        choices=_choices(audited),
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


def _choices(audited: Audited) -> Choices:
    run, shards = audited.run, audited.shards
    note = why_no_sheet(run, shards)
    if note is not None or run.logits is None:
        return Choices(note=note)
    rows = draw_sheet(run, run.logits, shards, num_rows=SHEET_ROWS)
    drawn = drawn_rows(len(run.logits.labels_N), SHEET_ROWS)
    maps_BMN = read_maps(audited.model, shards, drawn, audited.process)
    picture = draw_result(audited, run.logits, drawn, maps_BMN)
    if maps_BMN is None:
        return Choices(rows=rows, picture=picture)
    heat = draw_heat(maps_BMN)
    return Choices(rows=_overlay(rows, heat.images), heat=heat, picture=picture)


def _overlay(rows: Sequence[SheetRow], images: Sequence[str]) -> tuple[SheetRow, ...]:
    return tuple(replace(row, heat=image) for row, image in zip(rows, images, strict=True))


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
