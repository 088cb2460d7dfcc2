# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the adaptation makes of the layouts of releases, file by file."""

from __future__ import annotations

from pathlib import Path

import adapt_fixtures
import pytest
from fleetlift_agent.adapt import network
from fleetlift_agent.adapt.names import Names
from fleetlift_agent.adapt.record import Record
from fleetlift_agent.adapt.situation import Situation
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


def bare_tree(root: Path, files: dict[str, str]) -> Tree:
    """A system whose NetworkManager is started and has no profile."""
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "NetworkManager.service").symlink_to("/usr/lib/systemd/system/NetworkManager.service")
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Tree(root)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("", []), ("no-auto-default=*\n", ["/etc/NetworkManager/system-connections/fleetlift.nmconnection"])],
)
def test_networkmanager_without_profiles_gets_one_only_if_it_makes_none_itself(
    setting: str, expected: list[str], tmp_path: Path
) -> None:
    tree = bare_tree(tmp_path, {"usr/lib/NetworkManager/conf.d/00-server.conf": f"[main]\n{setting}"})
    network.adapt(tree, Situation(Names(()), "bios"), set())
    assert [change.path for change in tree.staged] == expected


def test_networkd_is_left_alone_where_the_distribution_lets_any_nic_ask_for_an_address(tmp_path: Path) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "systemd-networkd.service").symlink_to("/usr/lib/systemd/system/systemd-networkd.service")
    vendor = tmp_path / "usr/lib/systemd/network/80-any.network"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("[Match]\nType=ether\n[Network]\nDHCP=yes\n")
    tree = Tree(tmp_path)
    network.adapt(tree, Situation(Names(()), "bios"), set())
    assert tree.staged == []
    vendor.write_text("[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
    network.adapt(tree, Situation(Names(()), "bios"), set())
    assert [change.path for change in tree.staged] == ["/etc/systemd/network/10-fleetlift.network"]
