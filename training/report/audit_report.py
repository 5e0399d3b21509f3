"""An audit -> one JSON and one self-contained HTML page, which loads nothing from anywhere."""

import json
from pathlib import Path

from pipeline.common.atomic_io import write_file
from training.audit.run import Audited
from training.report.audit_page import AuditPage, make_audit_page
from training.report.html import fill_template

TEMPLATE = "audit.html.j2"


def write_audit(audited: Audited, folder: Path) -> tuple[Path, Path]:
    """Write an audit for people and for programs.

    Args:
        audited: What to write.
        folder: Where; it is made if need be.

    Returns:
        The page and the JSON.
    """
    html = render_audit(make_audit_page(audited))
    fields = json.dumps(audited.audit.to_json(), indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "audit.html", folder / "audit.json"
    write_file(data, f"{fields}\n".encode())
    write_file(page, html.encode())
    return page, data


def render_audit(page: AuditPage) -> str:
    """Fill in the audit's template."""
    return fill_template(TEMPLATE, page)
