# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LVM's own ideas of where its disks are: filters in lvm.conf(5), and the devices file (lvmdevices(8))."""

from __future__ import annotations

import re

from .finding import Finding
from .situation import Situation
from .tree import Tree

CONFIGURATION = "/etc/lvm/lvm.conf"
# It names disks by their hardware; without it LVM looks at every disk, and it is made again by lvmdevices.
DEVICES = "/etc/lvm/devices/system.devices"
CONCERN = "lvm"

_FILTER = re.compile(r"^(\s*)((?:global_)?filter\s*=\s*)(\[.*?\]|\"[^\"]*\")", re.MULTILINE | re.DOTALL)
_HARDWARE = re.compile(r"sd|hd|xvd|nvme|by-id|by-path|cciss|mpath|wwn|scsi")
_MARK = "# not on this hardware: "


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    del situation
    text = tree.read(CONFIGURATION)
    if text is not None:
        tree.write(CONCERN, CONFIGURATION, adapt_lvm_conf(text))
    if tree.exists(DEVICES):
        tree.remove(CONCERN, DEVICES)
    return []


def adapt_lvm_conf(text: str) -> str:
    """The text with those filters commented out that let in disks by names which the target does not have."""

    def judge(found: re.Match[str]) -> str:
        accepting = re.findall(r"\"a(.)(.*?)\1\"", found[3])
        if not any(_HARDWARE.search(pattern) for _sign, pattern in accepting):
            return found[0]
        lines = (found[2] + found[3]).splitlines()
        return "\n".join(f"{found[1]}{_MARK}{line.strip()}" for line in lines)

    return _FILTER.sub(judge, text)
