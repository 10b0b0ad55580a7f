"""Every kind of page in a browser: whole, quiet, readable wide and narrow, light and dark; tables sort and search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
KINDS = ["report", "score", "pictures index", "pictures examples_001", "pictures detected_two_json_001"]


def opened(browser: Browser, file: Path, width: int = 1400, scheme: str = "light") -> tuple[Page, list[str]]:
    """Open a page; the list gets everything that goes wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page, wrong = context.new_page(), list[str]()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url[:80]))
    page.on("request", lambda one: wrong.append(one.url[:80]) if not one.url.startswith(("file:", "data:")) else None)
    page.goto(file.as_uri())
    return page, wrong


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_whole_and_readable(browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: str) -> None:
    """No error, no missing picture, nothing wider than the window; text stands out against its ground."""
    page, wrong = opened(browser, pages[kind], width, scheme)
    broken = page.evaluate(
        """async () => {
          const images = [...document.images];
          images.forEach(image => image.loading = "eager");
          const done = await Promise.allSettled(images.map(image => image.decode()));
          return done.filter(one => one.status === "rejected").length + images.filter(i => !i.naturalWidth).length;
        }"""
    )
    assert wrong == [] and broken == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate(
        """() => {
          const sum = text => text.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b);
          const style = getComputedStyle(document.body);
          return [sum(style.backgroundColor), sum(style.color)];
        }"""
    )
    assert (light[0] > 600 and light[1] < 200) if scheme == "light" else (light[0] < 200 and light[1] > 600)
    page.context.close()


@pytest.mark.parametrize("kind", ["report", "score", "pictures index"])
def test_tables_sort_and_search(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    """By numbers and by names, up and down, with the keyboard; what holds nothing stays last."""
    page, wrong = opened(browser, pages[kind])
    table = page.locator("table.sortable").first
    heads = [text.strip() for text in table.locator("th").all_inner_texts()]
    column = next(place for place, text in enumerate(heads) if text.startswith("AP"))

    def cells(place: int) -> list[str]:
        return [text.strip() for text in table.locator(f"tbody tr:visible td:nth-child({place + 1})").all_inner_texts()]

    def numbers() -> list[float]:
        texts = cells(column)
        known = [text for text in texts if text != "–"]
        assert texts[: len(known)] == known, "what holds nothing stands among the others"
        return [float(text) for text in known]

    table.locator("th button").nth(column).click()
    assert len(numbers()) > 1 and numbers() == sorted(numbers(), reverse=True)
    table.locator("th button").nth(column).focus()
    page.keyboard.press("Enter")
    assert numbers() == sorted(numbers())
    names = cells(0)
    table.locator("th button").first.click()
    assert set(cells(0)) == set(names) and cells(0) == sorted(names, key=lambda name: (name[:6], len(name), name))
    field = page.locator(f"input[data-table={table.get_attribute('id')}]")
    field.fill("thing 3")
    matching = [name for name in names if "thing" in name and "3" in name]
    assert cells(0) and set(cells(0)) >= set(matching)
    assert field.locator("xpath=../output").inner_text() == f"{len(cells(0))} of {len(names)}"
    field.fill("nothing is called that")
    assert cells(0) == []
    field.fill("")
    assert len(cells(0)) == len(names) and wrong == []
    page.context.close()


def test_contents_stay_in_view_and_paper_has_none(browser: Browser, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["report"])
    page.locator("nav a").last.click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.scrollY") > 500 and page.locator("nav").bounding_box()["y"] == 0  # type: ignore[index]
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("input[type=search]").first.is_visible()
    page.context.close()


def test_from_the_table_to_the_pictures(browser: Browser, pages: dict[str, Path]) -> None:
    """A link of a class leads to its section on another page."""
    page, wrong = opened(browser, pages["pictures index"])
    row = page.locator("#table tbody tr").first
    name = row.locator("td").first.inner_text()
    row.locator("a").last.click()
    page.wait_for_load_state()
    anchor = page.url.partition("#")[2]
    assert anchor and page.locator(f"#{anchor} h2").inner_text().startswith(name)
    assert page.locator(f"#{anchor} img").count() > 0 and wrong == []
    page.context.close()


def test_from_the_report_to_the_pictures(browser: Browser, pages: dict[str, Path]) -> None:
    """A picture of a class leads to the others of it."""
    page, wrong = opened(browser, pages["report"])
    figures = page.locator("#pictures figure")
    assert figures.count() == 12
    name = figures.first.locator("figcaption").inner_text().partition(" (")[0]
    figures.first.locator("a").click()
    page.wait_for_load_state()
    anchor = page.url.partition("#")[2]
    assert anchor and page.locator(f"#{anchor} h2").inner_text().startswith(name) and wrong == []
    page.context.close()
