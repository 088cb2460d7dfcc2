# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The catalogue of errors is what the source says, and leaves nothing out."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

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
