"""Templates, and how every page writes its numbers; all but SVGs and our script is escaped."""

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from training.study.finished import Spread
from training.study.paired import write_p

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = "gallery.js"


def fill_template(name: str, page: object) -> str:
    """Fill in a file of `templates/`.

    A page allows one script by its SHA-256, ours: what slipped into it otherwise would not run.

    Args:
        name: File name.
        page: The template's variable `page`.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "spread": write_spread, "macs": write_macs, "duration": write_duration, "p": _p,
        "once": _once, "option": _option, "signed": _signed,
    }  # fmt: skip
    script = (TEMPLATES / SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "script": Markup(script),  # noqa: S704 it is our own file
        "script_sha256": digest,
    }
    return environment.get_template(name).render(page=page) + "\n"


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """Encode a picture as a data URI, so that the page loads nothing.

    Args:
        picture: Any.
        kind: Pillow's name of the format, `JPEG` or `PNG`.
        options: Passed to Pillow's writer of the format.
    """
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_spread(value: Spread | None, digits: int = 1, alone: str = "") -> str:
    """Write `73.9 ± 0.4`; None becomes a dash.

    Args:
        value: The figure over seeds.
        digits: After the point.
        alone: Suffix where there is one seed, and so no spread.
    """
    if value is None:
        return "–"
    sd = alone if value.sd is None else f" ± {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{sd}".replace("-", "−")


def write_macs(count: int) -> str:
    """Write multiply-accumulates with three digits and a unit."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _signed(points: float) -> str:
    """Write a difference in points, `+0.4` or `−0.4`."""
    return f"{points:+.1f}".replace("-", "−")


def _p(p: float | None) -> str:
    """Write a p; None becomes a dash."""
    return "–" if p is None else write_p(p).removeprefix("= ")


def write_duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _once(values: Sequence[object]) -> str:
    """Join the distinct values, in order."""
    return ", ".join(dict.fromkeys(map(str, values)))


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)
