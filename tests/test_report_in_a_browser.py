"""The report in a real browser, which asks no network."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run, until
from PIL import Image
from test_report import (
    a_page,  # noqa: F401
    some_runs,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, driven by its own driver."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("Chromium and its driver are not here (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


#: Where a chart's legend ends, and where its axes begin.
_LEGEND = """
const edge = arguments[0].getBoundingClientRect().top;
return [arguments[0].querySelector('.legend').getBoundingClientRect().bottom - edge, arguments[0]._fullLayout._size.t]
"""


def wait(browser: Any, script: str, *arguments: Any) -> Any:
    return until(lambda: browser.execute_script(f"return {script}", *arguments))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_figures_appear_and_the_slider_moves(browser: Any, page: Path, width: int, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")
    places = browser.find_elements("css selector", "[data-chart]")
    assert len(places) >= 8
    for place in places:  # drawn when they come near the screen
        browser.execute_script("arguments[0].scrollIntoView()", place)
        wait(browser, "arguments[0].querySelector('.main-svg') !== null", place)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    strokes = "return [...arguments[0].querySelectorAll('.js-line')].map(line => getComputedStyle(line).stroke)"
    blue = {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}
    found = browser.execute_script(strokes, places[0])
    assert [colour in found for colour in blue.values()] == [each == scheme for each in blue]
    for place in places[:4]:  # no legend lies on its chart
        legend, top = browser.execute_script(_LEGEND, place)
        assert legend <= top + 1

    explorer = browser.find_element("css selector", ".explorer")
    browser.execute_script("arguments[0].scrollIntoView()", explorer)
    wait(browser, "arguments[0].dataset.shown === '0/3'", explorer)
    picture = "arguments[0].querySelector('.mask').toDataURL()"
    last = browser.execute_script(f"return {picture}", explorer)
    browser.execute_script(
        "const s = arguments[0].querySelector('.round'); s.value = 0; s.dispatchEvent(new Event('input'))", explorer
    )
    wait(browser, "arguments[0].dataset.shown === '0/0'", explorer)
    first = browser.execute_script(f"return {picture}", explorer)
    with Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))) as image:
        assert image.size == (300, 64)  # a tall mask is turned on its side
        assert len(image.getcolors()) == 1  # before any pruning all weights are there
    with Image.open(io.BytesIO(base64.b64decode(last.partition(",")[2]))) as image:
        assert len(image.getcolors()) == 2
    assert "100" in explorer.find_element("css selector", ".position").text
    assert browser.execute_script("return arguments[0].querySelector('.histogram .main-svg') !== null", explorer)
    assert explorer.find_element("css selector", ".pixel").is_displayed()
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []


def test_in_a_browser_one_of_several_runs_is_chosen(browser: Any, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.html"
    assert run("report", runs / "full", runs / "plain", "--out", out, "--no-figures") == 0
    browser.get(out.as_uri())
    shown = "[...document.querySelectorAll('[data-run]')].filter(e => !e.hidden).map(e => e.dataset.run).join()"
    assert browser.execute_script(f"return {shown}") == "0"
    browser.execute_script(
        "const s = document.getElementById('run'); s.value = '1'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.execute_script(f"return {shown}") == "1"
    place = browser.find_element("css selector", "[data-run='1'] [data-chart]")
    browser.execute_script("arguments[0].scrollIntoView()", place)
    wait(browser, "arguments[0].querySelector('.main-svg') !== null", place)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
