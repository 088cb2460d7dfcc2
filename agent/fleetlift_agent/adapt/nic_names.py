# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that give a NIC its name by the old hardware's address; with them the new NIC would be the second one."""

from __future__ import annotations

import re

from .finding import Finding
from .situation import Situation
from .tree import Tree

CONCERN = "nic_names"
# Written by udev's generator of older releases: every line of it is about hardware that is gone.
GENERATED = (
    "/etc/udev/rules.d/70-persistent-net.rules",
    "/etc/udev/rules.d/30-net_persistent_names.rules",
    "/etc/iftab",
)
_RULES = "/etc/udev/rules.d/*.rules"
_LINKS = "/etc/systemd/network/*.link"
_RULE = re.compile(
    r"(?=.*\bNAME\s*:?=)(?=.*(?:ATTRS?\{address\}|KERNELS|ENV\{ID_PATH\}|ATTRS?\{dev_id\}|PROGRAM)\s*==)"
    r"(?=.*(?:SUBSYSTEM==\"net\"|ATTRS?\{address\}))",
)
_BOUND_LINK = re.compile(r"^\s*(?:MACAddress|PermanentMACAddress|Path)\s*=\s*\S", re.MULTILINE)
_NAMING_LINK = re.compile(r"^\s*Name\s*=\s*\S", re.MULTILINE)


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    if situation.options.network.mode == "keep":
        return []
    for path in GENERATED:
        if tree.exists(path):
            tree.remove(CONCERN, path)
    for path in tree.glob(_RULES):
        text = tree.read(path)
        if text is not None:
            new = without_nic_names(text)
            if new != text:
                tree.write(CONCERN, path, new)
    for path in tree.glob(_LINKS):
        if is_bound_link(tree.read(path) or ""):
            tree.remove(CONCERN, path)
    return []


def without_nic_names(text: str) -> str:
    """A udev rules file without the rules that name a NIC by its address or place; continued lines are one rule."""
    rules = re.findall(r"(?:[^\n]*\\\n)*[^\n]*\n?", text)
    return "".join(
        rule for rule in rules if rule.lstrip().startswith("#") or not _RULE.match(rule.replace("\\\n", " "))
    )


def is_bound_link(text: str) -> bool:
    """Whether a .link file (systemd.link(5)) gives a name to one particular NIC."""
    return bool(_BOUND_LINK.search(text) and _NAMING_LINK.search(text))
