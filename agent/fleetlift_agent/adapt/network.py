# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of the copy: whichever programs configure it get DHCP, or the planned address, for the first NIC."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import ifcfg, ifupdown, keyfile, netplan, networkd
from .finding import Finding
from .situation import NetworkPlan, Situation
from .tree import Tree

CONCERN = "network"
KERNEL_NAME = "eth0"
KERNEL_NAMING = ("net.ifnames=0", "biosdevname=0")
_FIREWALLS = (
    "/etc/iptables/*",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/ip6tables",
    "/etc/nftables.conf",
    "/etc/firewalld/zones/*.xml",
    "/etc/ufw/*.rules",
)


@dataclass(frozen=True)
class Stack:
    """One program that configures networks. ``adapt`` answers the names of the NICs that it no longer configures.

    ``fits`` says whether the configuration does what is planned already, ``named`` whether it needs the NIC's name.
    """

    name: str
    present: Callable[[Tree], bool]
    fits: Callable[[Tree, NetworkPlan], bool]
    named: Callable[[Tree], bool]
    adapt: Callable[[Tree, NetworkPlan], set[str]]


# Programs that need no configuration of their own to be in charge: what comes with the distribution may do, or not.
_BARE = (("systemd-networkd", networkd.enabled), ("NetworkManager", keyfile.enabled))
STACKS = (
    Stack("ifupdown", ifupdown.present, ifupdown.fits, ifupdown.named, ifupdown.adapt),
    Stack("netplan", netplan.present, netplan.fits, netplan.named, netplan.adapt),
    Stack("NetworkManager", keyfile.present, keyfile.fits, keyfile.named, keyfile.adapt),
    Stack("ifcfg", ifcfg.present, ifcfg.fits, ifcfg.named, ifcfg.adapt),
    Stack("systemd-networkd", networkd.present, networkd.fits, networkd.named, networkd.adapt),
)


def adapt(tree: Tree, situation: Situation, words_in_use: set[str]) -> tuple[list[Finding], tuple[str, ...]]:
    """Findings, and the words that the kernel's command line needs so that the first NIC has the expected name."""
    plan = situation.options.network
    if plan.mode == "keep":
        return [], ()
    present = [stack for stack in STACKS if stack.present(tree)] or _bare(tree)
    if not present:
        return [
            Finding(
                "NETWORK_UNKNOWN",
                "note",
                "network",
                "Nothing on the copy configures a network in a way that is known here",
                "If the server needs an address, make sure that it asks for one by DHCP",
            )
        ], ()
    plan = replace(plan, nic=plan.nic or KERNEL_NAME)
    lost: set[str] = set()
    named = False
    replaced = []
    for stack in present:
        named = named or stack.named(tree)
        if not stack.fits(tree, plan):
            lost |= stack.adapt(tree, plan)
            replaced.append(stack.name)
    words: tuple[str, ...] = ()
    if named and plan.nic == KERNEL_NAME and not kernel_names_nics(tree, words_in_use):
        words = KERNEL_NAMING
    return _findings(tree, plan, lost, replaced), words


def _bare(tree: Tree) -> list[Stack]:
    """The one that is in charge where nothing is configured."""
    names = [name for name, enabled in _BARE if enabled(tree)]
    return [stack for stack in STACKS if stack.name in names[:1]]


def kernel_names_nics(tree: Tree, words: set[str]) -> bool:
    """Whether the first NIC is eth0 without being told so: an old udev, or a switch that is set already."""
    if "net.ifnames=0" in words:
        return True
    for name in ("80-net-setup-link.rules", "80-net-name-slot.rules"):
        if tree.link_target(f"/etc/udev/rules.d/{name}") == "/dev/null":
            return True
    rules = [
        f"{base}/udev/rules.d/{name}"
        for base in ("/lib", "/usr/lib")
        for name in ("80-net-setup-link.rules", "80-net-name-slot.rules")
    ]
    return not any(tree.exists(rule) for rule in rules)


def _findings(tree: Tree, plan: NetworkPlan, lost: set[str], stacks: list[str]) -> list[Finding]:
    if not stacks:
        return []
    found = [
        Finding(
            "NETWORK_REPLACED",
            "note",
            "network",
            f"The configuration of {', '.join(sorted(lost) or stacks)} was replaced: the first NIC uses {plan.mode}",
            "Addresses, routes, VLANs and bonds of the old network have no meaning on the new one; set up what is "
            "needed there",
            {"stacks": stacks, "nics": sorted(lost)},
        )
    ]
    renamed = lost - {plan.nic}
    named = [
        path
        for pattern in _FIREWALLS
        for path in tree.glob(pattern)
        if tree.is_file(path) and any(re.search(rf"\b{re.escape(nic)}\b", tree.read(path) or "") for nic in renamed)
    ]
    if named:
        found.append(
            Finding(
                "FIREWALL_NAMES_NIC",
                "warning",
                "network",
                f"Firewall rules in {', '.join(named)} name a NIC that is called {plan.nic} on the target",
                "Correct the rules after the cutover, or name the NIC with the option nic",
                {"files": named, "nics": sorted(renamed)},
            )
        )
    return found
