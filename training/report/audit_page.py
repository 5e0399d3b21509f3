"""All that the page of an audit shows, worked out before a word of HTML is written."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from training.audit.run import Audited
from training.audit.saliency import read_maps
from training.audit.verdict import Audit
from training.config import TrainConfig
from training.report.charts.audit import audit_macs
from training.report.charts.svg import colour_of
from training.report.contact_sheet import SheetRow, draw_sheet, drawn_rows, why_no_sheet
from training.report.heat_maps import HeatMaps, draw_heat
from training.run.record import DataRecord, describe_hardware
from training.study.finished import FREE_OPTIONS, Arm, FinishedRun, differing_options
from training.study.sentences import describe_data, is_drawn

SHEET_ROWS = 8
COLLAPSED = 0.1  # of the most entropy: below, the crops are hardly used
UNDECIDED = 0.9  # of it: above, the proposer is hardly sure of any image


@dataclass(frozen=True, kw_only=True)
class AuditPage:
    """All that the template shows.

    Attributes:
        audit: The figures.
        arm: That was audited.
        data: That it was trained on.
        data_line: The same in a sentence.
        is_drawn: Whether that is the embedded set.
        chart: Of accuracy against MACs, an SVG.
        collapse: What the entropies say, in a sentence.
        run: The one that was named, which the sheet shows.
        sheet: Images with its choices.
        sheet_note: Why there are none.
        heat: Of a proposer that has a map, what lies over the canvases.
        arms: The audited one, then those that it was compared with.
        options: Names of those that differ between them.
        changed: Options of the audited arm that are not the defaults, with their values.
        machine: That the audit ran on.
    """

    audit: Audit
    arm: Arm
    data: DataRecord
    data_line: str
    is_drawn: bool
    chart: Markup
    collapse: str
    run: FinishedRun
    sheet: tuple[SheetRow, ...]
    sheet_note: str | None
    heat: HeatMaps | None
    arms: tuple[Arm, ...]
    options: tuple[str, ...]
    changed: tuple[tuple[str, object], ...]
    machine: str

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """All that a figure of the page is of."""
        return tuple(run for arm in self.arms for run in arm.runs)


def make_audit_page(audited: Audited) -> AuditPage:
    """Turn an audit into all that its page shows."""
    arm, data = audited.arm, audited.run.record.data
    beside = [o for o in audited.others if not o.config.selects and o.config.fold is None]
    arms = (arm, *beside)
    sheet, heat, note = _sheet(audited)
    svg = audit_macs(audited.audit, colour_of(arm))
    return AuditPage(
        audit=audited.audit,
        arm=arm,
        data=data,
        data_line=describe_data(data, ""),
        is_drawn=is_drawn(data),
        chart=Markup(svg),  # noqa: S704 matplotlib escaped its text
        collapse=describe_collapse(audited.audit),
        run=audited.run,
        sheet=sheet,
        sheet_note=note,
        heat=heat,
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


def _sheet(audited: Audited) -> tuple[tuple[SheetRow, ...], HeatMaps | None, str | None]:
    run, shards = audited.run, audited.shards
    note = why_no_sheet(run, shards)
    if note is not None or run.table is None:
        return (), None, note
    rows = draw_sheet(run, run.table, shards, num_rows=SHEET_ROWS)
    drawn = drawn_rows(len(run.table.labels_N), SHEET_ROWS)
    maps = read_maps(audited.model, shards, drawn, audited.process)
    if maps is None:
        return rows, None, None
    heat = draw_heat(maps)
    return _overlay(rows, heat.images), heat, None


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
