# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a preflight: the same facts for programs, pipelines and people, and no way out for what it shows."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_fleet
from ansible_collections.fleetlift.cvm.plugins.module_utils.findings import SEVERITIES
from ansible_collections.fleetlift.cvm.plugins.module_utils.fleet_report import (
    document,
    junit,
    lines,
    natural,
    source_from,
)
from ansible_collections.fleetlift.cvm.plugins.plugin_utils.report_page import page
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from browser import browser, load, requests

REPORT = report_fleet.report()
BLOCKED = {"web3", "web7", "app5", "db3", "db4"}


# --- the document


def test_counts_are_those_of_the_sources() -> None:
    counts = REPORT["summary"]
    assert (counts["sources"], counts["ready"], counts["blocked"]) == (24, 19, 5)
    every = [finding for source in REPORT["sources"] for finding in source["findings"]]
    for severity in SEVERITIES:
        assert counts[f"{severity}s"] == sum(finding["severity"] == severity for finding in every)
    assert counts["accepted"] == 1


def test_waves_add_up_to_the_fleet() -> None:
    assert [wave["wave"] for wave in REPORT["waves"]] == ["wave 1", "wave 2", "wave 3"]
    assert sum(wave["ready"] for wave in REPORT["waves"]) == REPORT["summary"]["ready"]
    assert sorted(["w10", "w2", "w"], key=natural) == ["w", "w2", "w10"]


def test_codes_are_worst_first_and_name_all_their_sources() -> None:
    order = [SEVERITIES.index(code["severity"]) for code in REPORT["codes"]]
    assert order == sorted(order)
    for code in REPORT["codes"]:
        named = {
            source["source"]
            for source in REPORT["sources"]
            for each in source["findings"]
            if each["code"] == code["code"]
        }
        assert set(code["sources"]) == named


def test_source_that_cannot_be_reached_is_blocked_and_the_others_are_not() -> None:
    assert {source["source"] for source in REPORT["sources"] if source["state"] == "blocked"} == BLOCKED
    [away] = [source for source in REPORT["sources"] if source["source"] == "app5"]
    assert [finding["code"] for finding in away["findings"]] == ["SOURCE_UNREACHABLE"]


def test_source_without_a_result_is_blocked_with_what_ended_its_preflight() -> None:
    failed = {
        "code": "JOURNAL_CORRUPT",
        "severity": "blocker",
        "subject": "db9",
        "cause": "It is.",
        "action": "Delete it.",
    }
    known = source_from("db9", {"fleetlift_failure": "It is.", "fleetlift_failure_finding": failed})
    assert (known.state, [finding.code for finding in known.findings]) == ("blocked", ["JOURNAL_CORRUPT"])
    unknown = source_from("db9", {"fleetlift_failure": "Timeout"})
    assert (unknown.state, [finding.code for finding in unknown.findings]) == ("blocked", ["NOT_ASSESSED"])


def test_source_that_was_migrated_needs_no_result() -> None:
    assert source_from("db9", {"fleetlift_reached": "finalize"}).state == "done"
    assert source_from("db9", {"fleetlift_handed_over": True}).findings == ()


def test_document_is_json_and_keeps_what_was_accepted() -> None:
    again = json.loads(json.dumps(REPORT))
    [accepted] = [finding for source in again["sources"] for finding in source["findings"] if finding.get("accepted")]
    assert accepted["severity"] == "note"
    assert accepted["accepted"] == {"reason": "a replica takes over before the cutover", "severity": "warning"}


def test_terminal_shows_each_blocker_with_its_next_step() -> None:
    shown = "\n".join(lines(REPORT))
    assert "19 of 24 can migrate, 5 cannot." in shown
    for name in BLOCKED:
        assert re.search(rf"^{name}: [A-Z_]+: .* Next: .", shown, re.MULTILINE)


def test_page_shows_the_estimate_and_what_it_assumes() -> None:
    shown = page(REPORT)
    assert "<span>to send</span>" in shown and "<span>downtime, at most</span>" in shown
    assert "What the estimate assumes" in shown and "60% of what is read goes over the wire (assumed)" in shown


# --- JUnit


def test_pipelines_read_a_suite_per_source_and_a_failure_per_blocker() -> None:
    suites = list(JUnitXml.fromstring(junit(REPORT)))
    assert {suite.name for suite in suites} == {source["source"] for source in REPORT["sources"]}
    failing = {suite.name for suite in suites if suite.failures}
    assert failing == BLOCKED
    assert sum(suite.failures for suite in suites) == REPORT["summary"]["blockers"]
    for suite in suites:
        cases = list(suite)
        assert suite.tests == len(cases) > 0
        assert suite.failures == sum(bool(case.result) for case in cases)


@given(st.text(max_size=60))
def test_no_text_breaks_the_xml(text: str) -> None:
    report = document([], 0.0, {})
    finding = {"code": "X_Y", "severity": "blocker", "subject": text, "cause": text, "action": text}
    report["sources"] = [{"source": text, "findings": [finding]}]
    root = ElementTree.fromstring(junit(report))
    assert root.find("testsuite/testcase/failure") is not None


# --- the page


def test_page_keeps_every_text_in_its_place() -> None:
    shown = page(report_fleet.hostile())
    assert "<img" not in shown
    assert "<script>document" not in shown
    assert shown.count("<script>") == 1
    assert "default-src 'none'" in shown


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("report")
    made = {"fleet": directory / "fleet.html", "hostile": directory / "hostile.html"}
    made["fleet"].write_bytes(page(REPORT).encode())
    made["hostile"].write_bytes(page(report_fleet.hostile()).encode("utf-8", "replace"))
    return made


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser(1200, 900) as running:
        yield running


@pytest.fixture
def fleet_page(driver: Chrome, files: dict[str, Path]) -> Chrome:
    load(driver, files["fleet"])
    return driver


def visible(driver: Chrome, selector: str) -> list[Any]:
    return [element for element in driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def choose(driver: Chrome, name: str, value: str) -> None:
    driver.execute_script(
        "arguments[0].click()", driver.find_element(By.CSS_SELECTOR, f"input[name={name}][value={value}]")
    )


def open_all(driver: Chrome) -> None:
    driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def status(driver: Chrome) -> str:
    return str(driver.find_element(By.ID, "shown").text)


def servers(driver: Chrome) -> list[str]:
    return [element.text for element in visible(driver, "#by-server > .group > summary > strong")]


def test_page_shows_one_view_at_a_time_and_all_findings_at_first(fleet_page: Chrome) -> None:
    total = sum(REPORT["summary"][f"{severity}s"] for severity in SEVERITIES)
    assert status(fleet_page) == f"{total} findings"
    assert len(visible(fleet_page, "#by-code > .group")) == len(REPORT["codes"])
    assert servers(fleet_page) == []
    choose(fleet_page, "view", "by-server")
    assert len(servers(fleet_page)) == 24
    assert status(fleet_page) == f"{total} findings"


def test_severities_are_filtered(fleet_page: Chrome) -> None:
    choose(fleet_page, "severity", "warning")
    choose(fleet_page, "severity", "note")
    blockers = REPORT["summary"]["blockers"]
    assert status(fleet_page).startswith(f"{blockers} of ")
    open_all(fleet_page)
    assert {element.get_attribute("data-severity") for element in visible(fleet_page, ".finding")} == {"blocker"}
    choose(fleet_page, "view", "by-server")
    assert set(servers(fleet_page)) == BLOCKED


def test_words_are_searched_in_all_that_is_shown(fleet_page: Chrome) -> None:
    search = fleet_page.find_element(By.ID, "search")
    search.send_keys("port_closed web7")
    assert [element.text for element in visible(fleet_page, "#by-code > .group > summary code")] == ["PORT_CLOSED"]
    choose(fleet_page, "view", "by-server")
    assert servers(fleet_page) == ["web7"]
    search.clear()
    search.send_keys("nothing-like-it")
    assert servers(fleet_page) == []
    assert fleet_page.find_element(By.ID, "none").is_displayed()


def test_waves_are_filtered(fleet_page: Chrome) -> None:
    choose(fleet_page, "view", "by-server")
    fleet_page.find_element(By.CSS_SELECTOR, "#wave option[value='wave 3']").click()
    assert servers(fleet_page) == [f"db{number}" for number in range(1, 7)]


def test_server_named_by_a_finding_is_one_click_away(fleet_page: Chrome) -> None:
    [link] = [element for element in visible(fleet_page, ".chips a") if element.text == "db4"]
    link.click()
    opened = visible(fleet_page, "#by-server > .group[open] > summary > strong")
    assert [element.text for element in opened] == ["db4"]


def test_page_makes_no_request_and_logs_no_error(driver: Chrome, files: dict[str, Path]) -> None:
    for file in files.values():
        requests(driver)
        driver.get_log("browser")
        load(driver, file)
        open_all(driver)
        assert [address for address in requests(driver) if not address.startswith(("file:", "data:"))] == []
        assert driver.get_log("browser") == []


def test_what_a_server_says_is_never_run(driver: Chrome, files: dict[str, Path]) -> None:
    load(driver, files["hostile"])
    open_all(driver)
    assert driver.title == "0 of 1 servers can migrate"
    assert driver.find_elements(By.TAG_NAME, "img") == []
    assert "<script>document.title" in driver.find_element(By.TAG_NAME, "main").text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_phone_shows_everything_without_scrolling_sideways(files: dict[str, Path], dark: bool) -> None:
    with browser(390, 844, dark=dark) as phone:
        for file in files.values():
            load(phone, file)
            for view in ("by-code", "by-server"):
                choose(phone, "view", view)
                open_all(phone)
                width = phone.execute_script("return document.documentElement.scrollWidth")
                assert width <= 390, f"{file.name}, {view}"
        background = phone.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 21, 27)") is dark


def test_page_is_complete_without_scripts(files: dict[str, Path]) -> None:
    with browser(1000, 800) as driver:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        load(driver, files["fleet"])
        assert len(visible(driver, ".group")) == len(REPORT["codes"]) + 24
        assert visible(driver, ".tools") == []
