# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the adaptation makes of the layouts of releases, file by file."""

from __future__ import annotations

from pathlib import Path

import adapt_fixtures
import pytest
from fleetlift_agent.adapt.record import Record
from fleetlift_agent.adapt.tree import Tree


def content(directory: Path) -> dict[str, str]:
    """Every file and link of a tree but the adaptation's own record."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name.startswith("var/lib/fleetlift"):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes().decode("latin-1")
    return found


@pytest.mark.parametrize("name", adapt_fixtures.names())
def test_every_changed_file_is_as_expected_and_no_other_changes(name: str, tmp_path: Path) -> None:
    layout = adapt_fixtures.load(name, tmp_path / "root")

    _needs, findings = layout.stage()

    assert layout.staged() == layout.expected
    assert sorted({finding.code for finding in findings}) == sorted(layout.findings)


@pytest.mark.parametrize("name", adapt_fixtures.names())
def test_staging_writes_nothing(name: str, tmp_path: Path) -> None:
    layout = adapt_fixtures.load(name, tmp_path / "root")
    before = content(tmp_path / "root")

    layout.stage()

    assert content(tmp_path / "root") == before


@pytest.mark.parametrize("name", adapt_fixtures.names())
def test_a_second_adaptation_finds_nothing_to_do(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    layout = adapt_fixtures.load(name, root)
    layout.stage()
    layout.apply()
    first = content(root)

    again = adapt_fixtures.Layout(Tree(root), layout.disks, layout.situation, {}, [])
    again.stage()

    assert again.staged() == {}
    again.apply()
    assert content(root) == first


@pytest.mark.parametrize("name", adapt_fixtures.names())
def test_undoing_restores_every_file(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    layout = adapt_fixtures.load(name, root)
    before = content(root)
    layout.stage()
    layout.apply()
    assert content(root) != before

    Record(Tree(root)).undo()

    assert content(root) == before
