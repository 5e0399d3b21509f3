"""The pages' colours can be read, light and dark, and their policy allows our script alone."""

import base64
import hashlib
import re
from itertools import pairwise, product

import pytest

from training.report.html import SCRIPT, TEMPLATES

STYLE = (TEMPLATES / "base.html.j2").read_text(encoding="utf-8")
TEXTS = ("ink", "soft", "accent", "right", "wrong")
# What is read, on what: each pair that the pages use.
PAIRS = [*product(TEXTS, ("page", "shade")), ("loud-ink", "loud")]


def colours(scheme: str) -> dict[str, str]:
    """Read the variables of a scheme; the dark one comes second."""
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))


def luminance(colour: str) -> float:
    """Give the relative luminance of WCAG 2."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
              for part in parts]  # fmt: skip
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme: str) -> None:
    named = colours(scheme)
    assert len(named) == 11
    for text, ground in PAIRS:
        assert contrast(named[text], named[ground]) >= 4.5, (text, ground)


def test_both_schemes_name_the_same_colours() -> None:
    assert colours("light").keys() == colours("dark").keys()


def test_the_policy_of_a_page_names_the_script_by_its_hash_and_no_address(html_page: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html_page)
    (script,) = re.findall(r"<script>(.*?)</script>", html_page, re.S)
    assert script == (TEMPLATES / SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    assert len(script.splitlines()) < 150


LOADS = re.compile(r"""(?:\bsrc|\bhref|\bdata|\baction)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""")
INLINE = ("#", "data:image/jpeg;base64,", "data:image/png;base64,")


def test_a_page_names_no_file_and_no_address(html_page: str) -> None:
    for found in LOADS.finditer(html_page):
        target = found[1] or found[2]
        assert target.startswith(INLINE), target
    for word in ("<link", "@import", "fetch(", 'http-equiv="refresh', " onclick", " onload"):
        assert word not in html_page


def test_headings_are_in_order_and_every_picture_has_words(html_page: str) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", html_page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for tag in re.findall(r"<img[^>]*>", html_page):
        assert re.search(r'alt="[^"]{9,}"', tag), tag[:99]
    for tag in re.findall(r"<svg[^>]*>", html_page):
        assert re.search(r'role="img" aria-label="[^"]{9,}"', tag), tag[:99]
    for tag in re.findall(r'<span class="picture"[^>]*>', html_page):
        assert re.search(r'role="img" aria-label="[^"]{9,}"', tag), tag[:99]
    ids = re.findall(r' id="([^"]+)"', html_page)
    assert len(ids) == len(set(ids))
    assert '<html lang="en">' in html_page
