# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""mdadm.conf(5): arrays are found by their UUID on whatever disks there are."""

from __future__ import annotations

import re

from .finding import Finding
from .situation import Situation
from .tree import Tree

PATHS = ("/etc/mdadm/mdadm.conf", "/etc/mdadm.conf")
CONCERN = "mdadm"

_DEVICES = re.compile(r"(?i)^(\s*dev(?:i(?:ce?)?)?)\s+(.*?)(\s*)$")
_MEMBERS = re.compile(r"(?i)\s+devices=\S+")
_BY_CONTENT = ("partitions", "containers")


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    del situation
    for path in PATHS:
        text = tree.read(path)
        if text is not None:
            tree.write(CONCERN, path, adapt_mdadm(text))
    return []


def adapt_mdadm(text: str) -> str:
    """The text without names of disks: DEVICE lines become ``partitions``, ARRAY lines with a UUID lose their list."""
    return "".join(_adapt_line(line) for line in text.splitlines(keepends=True))


def _adapt_line(line: str) -> str:
    body = line.rstrip("\n")
    found = _DEVICES.match(body)
    if found and any(word not in _BY_CONTENT for word in found[2].split()):
        return f"{found[1]} partitions" + line[len(body) :]
    if re.match(r"(?i)\s*array\s", body) and re.search(r"(?i)\suuid=", body):
        return _MEMBERS.sub("", body) + line[len(body) :]
    return line
