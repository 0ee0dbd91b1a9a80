"""The report's page in a real browser: Chromium, without a network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocktail.search.result import SearchResult
from tests.cocktail.search.results import made_up

pytest.importorskip("plotly", reason="plotly draws the page: pip install plotly")

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return made_up()


@pytest.fixture(scope="module")
def address(result: SearchResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    from cocktail.search.page import write_page

    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(result, path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def opened(browser: Any, address: str, width: int = 1200, scheme: str = "light") -> Any:
    """The page, at a width and in a colour scheme; the console is empty."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(address)
    assert browser.get_log("browser") == []
    return browser


def text(browser: Any) -> str:
    return str(browser.find_element("id", "now").text)


def move(browser: Any, place: int) -> None:
    """Click on a tick's place of the handle's rail."""
    from selenium.webdriver.common.action_chains import ActionChains

    rail = browser.find_element("css selector", ".slider-rail-touch-rect")
    start, end = -rail.size["width"] / 2 + 8, rail.size["width"] / 2 - 8
    across = start + (end - start) * place / 10
    ActionChains(browser).move_to_element_with_offset(rail, across, 0).click().perform()


def test_it_opens_with_the_choice(browser: Any, address: str, result: SearchResult) -> None:
    opened(browser, address)
    assert browser.find_element("tag name", "h1").text == result.verdict.headline
    shown = text(browser)
    assert "40% of the way (the choice)" in shown
    assert "0.600" in shown and "0.400" in shown
    chosen = result.chosen
    for side in (chosen.loss, chosen.metric, chosen.general):
        assert f"{side.mean.mean:.4f}" in shown
        assert str(side.difference) in shown


def test_the_handle_moves_the_figures_and_the_ring(
    browser: Any, address: str, result: SearchResult
) -> None:
    opened(browser, address)
    for place in (9, 2):
        move(browser, place)
        point = result.points[place]
        assert point.name in text(browser)
        assert f"{point.general.mean.mean:.4f}" in text(browser)
        assert f"{point.weights[1]:.3f}" in text(browser)
        rings = browser.execute_script(
            "return document.getElementById('curve').data"
            ".filter(t => t.marker && t.marker.symbol == 'circle-open').map(t => [t.x[0], t.y[0]])"
        )
        assert rings == [
            [pytest.approx(point.share), pytest.approx(point.metric.mean.mean)],
            [pytest.approx(point.share), pytest.approx(point.general.mean.mean)],
        ]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_reads_well(browser: Any, address: str, width: int, scheme: str) -> None:
    """Nothing is wider than the window, text is large enough and stands out from what is behind."""
    opened(browser, address, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    chart = browser.find_element("id", "curve").size
    assert width * 0.5 <= chart["width"] <= width
    small = browser.execute_script(
        "return [...document.querySelectorAll('p, td, summary, .ytick text, .y2tick text')]"
        ".filter(e => e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 11)"
        ".length"
    )
    assert small == 0
    behind = colour(
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    )
    ink = colour(browser.execute_script("return getComputedStyle(document.body).color"))
    ticks = colour(
        browser.execute_script(
            "return getComputedStyle(document.querySelector('.ytick text')).fill"
        )
    )
    assert (luminance(behind) < 0.1) == (scheme == "dark")
    assert contrast(ink, behind) > 7
    assert contrast(ticks, behind) > 7


def colour(value: str) -> list[float]:
    return [float(number) / 255 for number in re.findall(r"[\d.]+", value)[:3]]


def luminance(rgb: list[float]) -> float:
    """Relative luminance, WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_what_moved_is_told(browser: Any, address: str) -> None:
    opened(browser, address)
    summaries = browser.find_elements("tag name", "summary")
    assert [each.text for each in summaries] == [
        "what of target, 2 to 1?", "what of target, 1 to 3?", "what of general, 1 to 2?",
    ]  # fmt: skip
    summaries[0].click()
    details = browser.find_element("tag name", "details").text
    assert "The <b>first</b> passage & more." in details and "2 → 1" in details
    headings = [each.text for each in browser.find_elements("css selector", "h3")]
    assert {"Target, for the better", "Target, for the worse"} <= set(headings)


def test_the_page_needs_nothing_from_elsewhere(result: SearchResult) -> None:
    from cocktail.search.page import page

    written = page(result)
    assert not re.findall(r"<(?:script|img)[^>]+src=|<link[^>]+href=\"(?!data:)", written)
    assert "</script><b>" not in written


def test_without_general_examples_there_is_one_chart(tmp_path: Path) -> None:
    from cocktail.search.page import page

    written = page(made_up(general=False))
    assert "General: " not in written
    assert "nothing says what this costs elsewhere" in written
