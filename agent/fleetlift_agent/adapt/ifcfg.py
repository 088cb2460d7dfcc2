# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ifcfg files: of the Red Hat family in /etc/sysconfig/network-scripts, of SUSE in /etc/sysconfig/network."""

from __future__ import annotations

import posixpath
import re

from .situation import NetworkPlan
from .tree import Tree

CONCERN = "network"
RED_HAT = "/etc/sysconfig/network-scripts"
SUSE = "/etc/sysconfig/network"
_LINE = re.compile(r"^\s*([A-Za-z0-9_]+)=(.*?)\s*$", re.MULTILINE)
_GATEWAY = re.compile(r"^\s*(?:GATEWAY|GATEWAYDEV)=.*\n?", re.MULTILINE)
_BINDING = ("HWADDR", "MACADDR", "LLADDR", "ETHERDEVICE", "BONDING_MASTER", "MASTER", "VLAN", "BRIDGE")
_DYNAMIC = ("dhcp", "dhcp4", "dhcp+autoip")
# What SUSE and Red Hat keep beside the interfaces and only makes sense in the old network.
_COPIES = re.compile(r"\.(?:bak|old|orig|rpmnew|rpmsave)$|~$")
_ROUTES = ("route-*", "route6-*", "rule-*", "rule6-*", "ifroute-*", "ifrule-*", "routes")


def present(tree: Tree) -> bool:
    return any(_interfaces(tree, base) for base in (RED_HAT, SUSE))


def named(tree: Tree) -> bool:
    del tree
    return True


def fits(tree: Tree, plan: NetworkPlan) -> bool:
    if plan.mode != "dhcp":
        return all(
            tree.read(f"{base}/ifcfg-{plan.nic}") == render(plan, base)
            for base in (RED_HAT, SUSE)
            if _interfaces(tree, base)
        )
    for base in (RED_HAT, SUSE):
        found = _interfaces(tree, base)
        if not found:
            continue
        if list(found) != [plan.nic] or any(tree.glob(f"{base}/{pattern}") for pattern in _ROUTES):
            return False
        values = variables(tree.read(found[plan.nic]) or "")
        if values.get("BOOTPROTO", "").lower() not in _DYNAMIC or any(values.get(key) for key in _BINDING):
            return False
        if values.get("ONBOOT", "yes").lower() != "yes" or values.get("STARTMODE", "auto") not in ("auto", "onboot"):
            return False
    return _GATEWAY.search(tree.read(SUSE) or "") is None


def adapt(tree: Tree, plan: NetworkPlan) -> set[str]:
    nics: set[str] = set()
    for base in (RED_HAT, SUSE):
        found = _interfaces(tree, base)
        if not found:
            continue
        nics |= set(found)
        for path in (*found.values(), *(path for pattern in _ROUTES for path in tree.glob(f"{base}/{pattern}"))):
            tree.remove(CONCERN, path)
        tree.write(CONCERN, f"{base}/ifcfg-{plan.nic}", render(plan, base))
        if base == SUSE and plan.mode == "static" and plan.gateway:
            tree.write(CONCERN, f"{base}/routes", f"default {plan.gateway} - -\n")
    # Of the Red Hat family: a file where SUSE has a directory.
    text = tree.read(SUSE)
    if text is not None:
        tree.write(CONCERN, SUSE, _GATEWAY.sub("", text))
    return nics


def render(plan: NetworkPlan, base: str) -> str:
    """The file for one NIC."""
    if base == SUSE:
        lines = ["STARTMODE='auto'"]
        if plan.mode == "static":
            lines += ["BOOTPROTO='static'", f"IPADDR='{plan.address}'"]
        else:
            lines += ["BOOTPROTO='dhcp'"]
        return "\n".join(lines) + "\n"
    lines = ["TYPE=Ethernet", f"DEVICE={plan.nic}", f"NAME={plan.nic}", "ONBOOT=yes"]
    if plan.mode == "static":
        address, _slash, prefix = plan.address.partition("/")
        lines += ["BOOTPROTO=none", f"IPADDR={address}", f"PREFIX={prefix}"]
        lines += [f"GATEWAY={plan.gateway}"] if plan.gateway else []
        lines += [f"DNS{number}={server}" for number, server in enumerate(plan.dns, 1)]
    else:
        lines += ["BOOTPROTO=dhcp"]
    return "\n".join(lines) + "\n"


def variables(text: str) -> dict[str, str]:
    """The assignments in a file, without their quotes."""
    return {found[1]: found[2].strip("\"'") for found in _LINE.finditer(text)}


def _interfaces(tree: Tree, base: str) -> dict[str, str]:
    """By the NIC's name: the files of a directory, without the loopback interface and editors' copies."""
    found = {}
    for path in tree.glob(f"{base}/ifcfg-*"):
        name = posixpath.basename(path)[len("ifcfg-") :]
        if (
            name != "lo"
            and not name.startswith("lo:")
            and not re.search(r"\.(?:bak|old|orig|rpmnew|rpmsave)$|~$", name)
        ):
            found[variables(tree.read(path) or "").get("DEVICE") or name] = path
    return found
