# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The catalogue of errors is what the source says, and leaves nothing out."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud import cos_errors
from ansible_collections.fleetlift.cvm.plugins.module_utils.cloud import errors as cloud_errors

REPOSITORY = Path(__file__).resolve().parents[2]
# Codes that no test produces yet, one a line.
UNTESTED = REPOSITORY / "tests" / "untested_codes.txt"
# Tables of which a test below reads every entry.
TABLES = (cloud_errors._MEANINGS, cloud_errors._STATE_ERRORS, cos_errors._MEANINGS)

sys.path.insert(0, str(REPOSITORY / "tests"))
catalogue = importlib.import_module("error_catalogue")


def test_the_catalogue_is_up_to_date() -> None:
    found = catalogue.render(catalogue.collect())
    assert catalogue.CATALOGUE.read_text() == found, "run: python tests/error_catalogue.py"


def test_every_code_that_the_catalogue_names_can_be_produced() -> None:
    sources = [
        *REPOSITORY.glob("agent/**/*.py"),
        *REPOSITORY.glob("plugins/**/*.py"),
        *REPOSITORY.glob("roles/**/*.yml"),
    ]
    text = "\n".join(path.read_text() for path in sources)
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`", catalogue.CATALOGUE.read_text()))
    assert len(named) > 100
    assert {code for code in named if code not in text} == set()


def test_every_record_says_why_and_what_next() -> None:
    wanting = {f"{entry.code} in {entry.path}" for entry in catalogue.collect() if not (entry.cause and entry.action)}
    assert wanting == set()


def test_codes_in_the_roles_are_catalogued() -> None:
    page = catalogue.CATALOGUE.read_text()
    for path in REPOSITORY.glob("roles/**/*.yml"):
        for code in re.findall(r"^ +([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+): ", path.read_text(), re.MULTILINE):
            assert f"`{code}`" in page, f"{code} in {path}"


def produced_by_tests() -> set[str]:
    """The codes that a test names, or that stand in a table which a test reads from end to end."""
    tests = [path for base in ("tests", "extensions") for path in (REPOSITORY / base).rglob("*")]
    text = "\n".join(path.read_text() for path in tests if path.suffix in (".py", ".yml", ".json") and path.is_file())
    codes = {entry.code for entry in catalogue.collect()}
    named = {code for code in codes if re.search(rf"\b{code}\b", text)}
    return named | {meaning.code for table in TABLES for meaning in table.values()}


def test_every_meaning_of_a_clouds_error_is_one_that_is_documented_and_reached_by_its_code() -> None:
    documented = {entry.code for entry in catalogue.collect()}
    for code, meaning in cloud_errors._MEANINGS.items():
        assert cloud_errors.meaning_of(code) is meaning
        assert cloud_errors.meaning_of(f"{code}.SomethingNarrower").code in documented
        assert cloud_errors.CloudError(code, "message", "request", "Action").finding.code == meaning.code
    for code, meaning in cloud_errors._STATE_ERRORS.items():
        assert cloud_errors.meaning_of(f"UnsupportedOperation.InstanceState{code}") is meaning
    for code, meaning in cos_errors._MEANINGS.items():
        assert cos_errors.cos_meaning(code, "message") is meaning


def test_codes_that_no_test_produces_are_known_by_name() -> None:
    """The list may only become shorter: a new code comes with a test, and one that got its test is taken off."""
    untested = {entry.code for entry in catalogue.collect()} - produced_by_tests()
    assert untested == set(UNTESTED.read_text().split())
