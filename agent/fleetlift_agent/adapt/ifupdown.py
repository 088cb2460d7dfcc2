# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's and Ubuntu's /etc/network/interfaces (interfaces(5))."""

from __future__ import annotations

import re

from .situation import NetworkPlan
from .tree import Tree

CONCERN = "network"
PATH = "/etc/network/interfaces"
_DROP_INS = "/etc/network/interfaces.d/*"
_IFACE = re.compile(r"^\s*iface\s+(\S+)\s+(\S+)\s+(\S+)", re.MULTILINE)
_BOUND = re.compile(r"^\s*(?:hwaddress|mac-address|rename)\s", re.MULTILINE)
_SOURCE = re.compile(r"^\s*source(?:-directory|dir)?\s+\S+.*$", re.MULTILINE)


def present(tree: Tree) -> bool:
    """Debian leaves the file in place when another program takes over; then it only has the loopback interface."""
    return tree.is_file(PATH) and (bool(_nics(tree)) or tree.exists("/sbin/ifup"))


def named(tree: Tree) -> bool:
    del tree
    return True


def fits(tree: Tree, plan: NetworkPlan) -> bool:
    """Already as planned; or somebody else's business, when another program is there and this one has no NIC."""
    if not _nics(tree):
        return any(tree.glob(pattern) for pattern in ("/etc/netplan/*.yaml", "/etc/systemd/network/*.network")) or bool(
            tree.glob("/etc/NetworkManager/system-connections/*")
        )
    stanzas = [found.groups() for text in _texts(tree).values() for found in _IFACE.finditer(text)]
    rest = {(nic, method) for nic, family, method in stanzas if nic != "lo" and family == "inet"}
    bound = any(_BOUND.search(text) for text in _texts(tree).values())
    return plan.mode == "dhcp" and rest == {(plan.nic, "dhcp")} and not bound


def adapt(tree: Tree, plan: NetworkPlan) -> set[str]:
    nics = _nics(tree)
    text = tree.read(PATH) or ""
    for path, other in _texts(tree).items():
        if path != PATH and any(found[1] != "lo" for found in _IFACE.finditer(other)):
            tree.remove(CONCERN, path)
    tree.write(CONCERN, PATH, render(plan, [found[0].strip() for found in _SOURCE.finditer(text)]))
    return nics


def render(plan: NetworkPlan, sources: list[str]) -> str:
    """The file for one NIC, with the lines that read further files."""
    lines = [*sources, ""] if sources else []
    lines += ["auto lo", "iface lo inet loopback", "", f"auto {plan.nic}"]
    if plan.mode == "static":
        lines += [f"iface {plan.nic} inet static", f"    address {plan.address}"]
        lines += [f"    gateway {plan.gateway}"] if plan.gateway else []
        lines += [f"    dns-nameservers {' '.join(plan.dns)}"] if plan.dns else []
    else:
        lines.append(f"iface {plan.nic} inet dhcp")
    return "\n".join(lines) + "\n"


def _texts(tree: Tree) -> dict[str, str]:
    paths = [PATH, *(path for path in tree.glob(_DROP_INS) if tree.is_file(path))]
    return {path: tree.read(path) or "" for path in paths}


def _nics(tree: Tree) -> set[str]:
    return {found[1] for text in _texts(tree).values() for found in _IFACE.finditer(text)} - {"lo"}
