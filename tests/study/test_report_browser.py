"""The report in headless Chromium: phone, desktop, print, without scripts."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from real_browser import open_browser, requests, set_width

from .fake_study import FIGURES


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from open_browser(tmp_path_factory.mktemp("profile"))


@pytest.mark.slow
def test_report_in_a_browser(toy, browser):
    _, _, paths = toy
    address = Path(paths["report"]).resolve().as_uri()
    for width in (390, 1200):
        set_width(browser, width)
        browser.get(address)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [url for url in requests(browser) if not url.startswith(("data:", address, "chrome"))] == []
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return [...document.images].map(i => [i.alt, i.naturalWidth > 100])")
    assert len(loaded) == len(FIGURES) and all(ok and alt for alt, ok in loaded)

    column = """
        const table = document.getElementById("table-arms");
        const head = [...table.tHead.rows[0].cells].findIndex(c => c.textContent.startsWith("final"));
        if (arguments[0]) table.tHead.rows[0].cells[head].querySelector("button").click();
        return [...table.tBodies[0].rows].map(r => r.cells[head].dataset.sort);
    """
    browser.execute_script(column, True)
    up = [float(v) for v in browser.execute_script(column, False) if v]
    assert up == sorted(up) and len(set(up)) > 3
    assert browser.execute_script(column, False)[-1] == ""  # the base model has no final score: last
    browser.execute_script(column, True)
    assert [float(v) for v in browser.execute_script(column, False) if v] == sorted(up, reverse=True)

    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    canvas = browser.find_element(By.ID, "map-canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    tip = browser.find_element(By.ID, "map-tip")
    size = canvas.size
    text = ""
    for x in range(-size["width"] // 2 + 10, size["width"] // 2 - 10, 12):
        ActionChains(browser, duration=0).move_to_element_with_offset(canvas, x, 0).perform()
        if tip.is_displayed():
            text = tip.text
            break
    assert "▒▒▒" in text or "List lanterns" in text
    assert re.search(r"chosen|task row", text)
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_report_prints_with_all_figures_and_works_without_scripts(toy, browser, tmp_path):
    _, _, paths = toy
    set_width(browser, 1200)
    address = Path(paths["report"]).resolve().as_uri()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        time.sleep(0.2)
        from selenium.webdriver.common.by import By

        assert not browser.find_element(By.ID, "map").is_displayed()
        assert browser.find_element(By.ID, "table-arms").is_displayed()
        assert len(browser.find_elements(By.TAG_NAME, "img")) == len(FIGURES)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.get(address)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        heights = browser.execute_script("return [...document.images].map(i => i.getBoundingClientRect().height)")
        assert len(heights) == len(FIGURES) and min(heights) > 50
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(browser.print_page()) > 50_000  # base64 of a PDF with pictures in it
