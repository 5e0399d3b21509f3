"""Both pages in Chromium: every control works by mouse, keys and touch, and nothing is loaded.

Each test ends with the check that the page logged no error and asked for no address.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
Browser, Locator, Page, expect = (
    sync_api.Browser, sync_api.Locator, sync_api.Page, sync_api.expect
)  # fmt: skip

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt-get install chromium"
)

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NUM_IMAGES = 29
# The contrast of each text with the first ground below it that is not transparent.
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3)
    .map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    const rgb = numbers(getComputedStyle(element).backgroundColor);
    return rgb[3] === 0 ? ground(element.parentElement) : rgb;
  };
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, svg, option")) continue;
    const pair = [numbers(getComputedStyle(element).color), ground(element)].map(luminance);
    const [low, high] = pair.sort((one, other) => one - other);
    found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, select, input, summary, [tabindex]")]
  .filter((each) => !each.getAttribute("aria-label") && !each.labels?.length)
  .filter((each) => !each.textContent.trim())
  .map((each) => each.outerHTML)"""


def children(pid: int) -> set[int]:
    """List the processes below one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it ended meanwhile
            continue
        if parent == pid:
            found |= {int(stat.parent.name), *children(int(stat.parent.name))}
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all these tests; none of its processes outlives them."""
    before = children(os.getpid())
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        begun = children(os.getpid()) - before
        assert begun
        yield browser
        browser.close()
    while any(Path(f"/proc/{pid}").exists() for pid in begun):
        time.sleep(0.05)


@pytest.fixture
def audit(pages: dict[str, Path]) -> Path:
    """The page of the audit; the images of the other are the same markup."""
    return pages["audit"]


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a file: `open_page(file, **PHONE, color_scheme="dark")`."""
    faults: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_file(file: Path, **options: Any) -> Page:
        context = browser.new_context(**(options or DESKTOP))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith("data:image/")] == [
        url for url in asked if url.endswith(".html") and url.startswith("file:")
    ]


def tiles(page: Page) -> Locator:
    """Find the images that are shown."""
    return page.locator(".tile:not([hidden])")


def opened_tile(page: Page) -> Locator:
    return page.locator(".tile[open]")


def regrets(page: Page) -> list[float]:
    shown = tiles(page).evaluate_all("(all) => all.map((each) => Number(each.dataset.regret))")
    assert isinstance(shown, list)
    return shown


def test_images_are_filtered_by_class_and_sorted_by_regret(
    page_file: Path, open_page: Open
) -> None:
    page = open_page(page_file)
    expect(page.locator("#gallery-count")).to_have_text(f"{NUM_IMAGES} images")
    drawn = regrets(page)
    assert len(set(drawn)) > 2
    page.get_by_label("Order").select_option("largest regret first")
    assert regrets(page) == sorted(drawn, reverse=True)
    page.get_by_label("Order").select_option("smallest regret first")
    assert regrets(page) == sorted(drawn)
    page.get_by_label("Class", exact=True).select_option("fish (3)")
    expect(tiles(page)).to_have_count(3)
    expect(page.locator("#gallery-count")).to_have_text("3 images")
    assert all(text.startswith("fish") for text in tiles(page).locator("summary").all_inner_texts())
    page.get_by_label("Class", exact=True).select_option("all")
    page.get_by_label("Order").select_option("as drawn")
    assert regrets(page) == drawn


def test_the_map_is_shown_and_hidden(audit: Path, open_page: Open) -> None:
    page = open_page(audit)
    heat = tiles(page).first.locator("summary .heat")
    expect(heat).to_be_hidden()
    page.get_by_label("Show the map").check()
    expect(heat).to_be_visible()
    page.get_by_label("Show the map").uncheck()
    expect(heat).to_be_hidden()


def test_a_pointer_opens_an_image_and_a_click_keeps_it_open(audit: Path, open_page: Open) -> None:
    page = open_page(audit)
    tile, other = tiles(page).nth(2), tiles(page).nth(9)
    panel = tile.locator(".panel")
    tile.locator("summary").hover()
    expect(panel).to_be_visible()
    expect(panel.locator("tbody tr")).to_have_count(6)
    expect(panel.locator("tr.chosen")).to_have_count(1)
    expect(panel.locator(".heat")).to_be_visible()
    panel.locator("table").hover()  # the way there does not close it
    expect(panel).to_be_visible()
    page.mouse.move(2, 2)
    expect(opened_tile(page)).to_have_count(0)
    tile.locator("summary").click()
    other.locator("summary").hover()
    page.mouse.move(2, 2)
    expect(panel).to_be_visible()
    expect(opened_tile(page)).to_have_count(1)
    panel.get_by_role("button", name="Close").click()
    page.mouse.move(2, 2)
    expect(opened_tile(page)).to_have_count(0)
    tile.locator("summary").click()
    page.mouse.click(2, 2)
    expect(opened_tile(page)).to_have_count(0)


def test_keys_reach_open_and_close_every_image(audit: Path, open_page: Open) -> None:
    page = open_page(audit)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip the pictures")).to_be_focused()
    page.get_by_label("Show the map").focus()
    page.keyboard.press("Tab")
    first, second = (tiles(page).nth(number).locator("summary") for number in (0, 1))
    expect(first).to_be_focused()
    assert first.evaluate("(each) => getComputedStyle(each).outlineStyle") == "solid"
    expect(tiles(page).nth(0).locator(".panel")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(second).to_be_focused()
    expect(opened_tile(page)).to_have_count(1)
    page.keyboard.press("ArrowLeft")
    expect(first).to_be_focused()
    page.keyboard.press("Escape")
    expect(opened_tile(page)).to_have_count(0)
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(opened_tile(page)).to_have_count(1)
    page.keyboard.press("Tab")
    expect(tiles(page).first.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Enter")
    expect(opened_tile(page)).to_have_count(0)
    expect(first).to_be_focused()


def test_on_a_phone_a_tap_opens_a_sheet_that_fits(audit: Path, open_page: Open) -> None:
    page = open_page(audit, **PHONE, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    tile = tiles(page).nth(4)
    tile.locator("summary").tap()
    box = tile.locator(".panel").bounding_box()
    assert box is not None
    assert (box["x"], box["width"]) == (0, 390)
    assert box["y"] + box["height"] == pytest.approx(844, abs=1)
    tile.get_by_role("button", name="Close").tap()
    expect(opened_tile(page)).to_have_count(0)
    tile.locator("summary").tap()
    expect(opened_tile(page)).to_have_count(1)
    page.touchscreen.tap(195, 30)
    expect(opened_tile(page)).to_have_count(0)


def test_without_scripts_the_images_open_below_themselves(page_file: Path, open_page: Open) -> None:
    page = open_page(page_file, **DESKTOP, java_script_enabled=False)
    expect(tiles(page)).to_have_count(NUM_IMAGES)
    expect(page.locator(".controls")).to_be_hidden()
    expect(page.locator("#tables ~ .scroll table").first).to_be_visible()
    tiles(page).nth(3).locator("summary").click()
    expect(tiles(page).nth(3).locator(".panel")).to_be_visible()
    expect(tiles(page).nth(3).get_by_role("button", name="Close")).to_be_hidden()
    tiles(page).nth(3).locator("summary").click()
    expect(opened_tile(page)).to_have_count(0)


def test_every_text_can_be_read_and_every_control_has_a_name(
    page_file: Path, open_page: Open
) -> None:
    page = open_page(page_file)
    assert page.evaluate(NAMELESS) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 1000
        assert min(contrasts)[0] >= 4.5, (scheme, min(contrasts))


def test_nothing_moves_for_those_who_asked_for_that(audit: Path, open_page: Open) -> None:
    page, moves = open_page(audit), []
    for motion in ("no-preference", "reduce"):
        page.emulate_media(reduced_motion=motion)
        name = "getComputedStyle(document.querySelector('.panel')).animationName"
        moves.append(page.evaluate(name))
    assert moves == ["appear", "none"]


def test_a_script_that_is_not_ours_does_not_run_and_nothing_can_be_fetched(
    audit: Path, browser: Browser
) -> None:
    page = browser.new_page()
    page.goto(audit.as_uri())
    page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "document.title = 'ran'";
      document.body.append(script);
      const markup = `<b onclick="document.title = 'ran'">x</b>`;
      document.body.insertAdjacentHTML("beforeend", markup);
      document.body.lastChild.click();
    }""")
    assert page.title() != "ran"
    assert (
        page.evaluate("fetch('data:text/plain,x').then(() => 'came', () => 'refused')") == "refused"
    )
    page.close()
