# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layouts of releases as trees of files: ``before`` as the release has it, ``after`` only what is to change."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetlift_agent.adapt.adaptation import stage
from fleetlift_agent.adapt.finding import Finding
from fleetlift_agent.adapt.initramfs import Need
from fleetlift_agent.adapt.names import Names
from fleetlift_agent.adapt.record import Record
from fleetlift_agent.adapt.situation import Situation, parse_options
from fleetlift_agent.adapt.tree import Tree
from fleetlift_agent.adapt.volumes import Content, CopyDisk, DiskVolume

FIXTURES = Path(__file__).parent / "fixtures"
# Some boot code, as a block copy brings it along.
BOOT_SECTOR = b"\xeb\x63GRUB".ljust(512, b"\x90")
REMOVED = "(removed)\n"


@dataclass(frozen=True)
class Layout:
    """A fixture, unpacked for a test."""

    tree: Tree
    disks: tuple[CopyDisk, ...]
    situation: Situation
    expected: dict[str, str]
    findings: list[str]

    def stage(self) -> tuple[list[Need], list[Finding]]:
        return stage(self.tree, self.situation, self.disks, BOOT_SECTOR, [])

    def apply(self) -> None:
        """Write what is staged, and look at the files anew."""
        Record(self.tree).commit(self.tree.staged, [])

    def staged(self) -> dict[str, str]:
        """The changes as the fixture writes them."""
        found = {}
        for change in self.tree.staged:
            if change.link is not None:
                found[change.path] = f"-> {change.link}\n"
            else:
                found[change.path] = REMOVED if change.data is None else change.data.decode()
        return found


def names() -> list[str]:
    return sorted(path.name for path in FIXTURES.iterdir())


def make_disks(described: list[dict[str, Any]]) -> tuple[CopyDisk, ...]:
    """Disks from their description; their sizes do not matter."""
    disks = []
    for disk in described:
        volumes = tuple(
            DiskVolume(
                disk["id"],
                each["number"],
                each["number"] << 20,
                1 << 20,
                each["type"],
                each["partuuid"],
                Content(each["kind"], each["uuid"], each["label"]),
            )
            for each in disk["volumes"]
        )
        path = Path("/nonexistent") / disk["id"]
        names_there = (disk.get("device", ""), (), disk.get("serial", ""))
        disks.append(CopyDisk(disk["id"], path, 1 << 30, 512, disk["table"], volumes, *names_there))
    return tuple(disks)


def load(name: str, directory: Path, options: dict[str, Any] | None = None) -> Layout:
    """The fixture *name*, its files copied to *directory*."""
    described = json.loads((FIXTURES / name / "fixture.json").read_text(encoding="utf-8"))
    shutil.copytree(FIXTURES / name / "before", directory)
    for path, target in described.get("links", {}).items():
        link = directory / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    disks = make_disks(described["disks"])
    inner = [
        DiskVolume(disk, 0, 0, 1 << 20, "", "", Content(kind, uuid)) for disk, kind, uuid in described.get("inner", [])
    ]
    situation = Situation(Names(disks, inner), described.get("firmware", "bios"), parse_options(options or {}))
    listing = FIXTURES / name / "after"
    expected = {
        "/" + str(path.relative_to(listing)): path.read_text(encoding="utf-8")
        for path in listing.rglob("*")
        if path.is_file()
    }
    return Layout(Tree(directory), disks, situation, expected, described["findings"])


def write_expected(name: str, layout: Layout) -> None:
    """Make the ``after`` of a fixture from what is staged; to be read before it is committed."""
    listing = FIXTURES / name / "after"
    shutil.rmtree(listing, ignore_errors=True)
    for path, text in layout.staged().items():
        place = listing / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
