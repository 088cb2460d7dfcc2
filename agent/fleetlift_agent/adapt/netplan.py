# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ubuntu's /etc/netplan: YAML that is replaced as a whole, for nothing of it describes the new network."""

from __future__ import annotations

import re

from .situation import NetworkPlan
from .tree import Tree

CONCERN = "network"
PATH = "/etc/netplan/50-fleetlift.yaml"
_FILES = "/etc/netplan/*.yaml"
_RENDERER = re.compile(r"^\s*renderer:\s*(\S+)", re.MULTILINE)
# The names of interfaces stand below these keys, one level deeper.
_GROUPS = re.compile(r"^( *)(ethernets|bonds|vlans|bridges):\s*$", re.MULTILINE)


def present(tree: Tree) -> bool:
    return bool(tree.glob(_FILES))


def named(tree: Tree) -> bool:
    """systemd-networkd takes patterns for names, NetworkManager of older releases does not."""
    return _renderer(tree) == "NetworkManager"


def fits(tree: Tree, plan: NetworkPlan) -> bool:
    return tree.glob(_FILES) == [PATH] and tree.read(PATH) == render(plan, _renderer(tree))


def adapt(tree: Tree, plan: NetworkPlan) -> set[str]:
    renderer = _renderer(tree)
    nics: set[str] = set()
    for path in tree.glob(_FILES):
        nics |= interface_names(tree.read(path) or "")
        if path != PATH:
            tree.remove(CONCERN, path)
    # Newer releases warn about a file that others may read.
    tree.write(CONCERN, PATH, render(plan, renderer), mode=0o600)
    return nics - {"first"}


def render(plan: NetworkPlan, renderer: str) -> str:
    """The file for one NIC."""
    lines = ["network:", "  version: 2", f"  renderer: {renderer}", "  ethernets:"]
    if renderer == "NetworkManager":
        lines.append(f"    {plan.nic}:")
    else:
        lines += ["    first:", "      match:", '        name: "e*"']
    if plan.mode == "static":
        lines += ["      addresses:", f"        - {plan.address}"]
        lines += ["      routes:", "        - to: 0.0.0.0/0", f"          via: {plan.gateway}"] if plan.gateway else []
        lines += ["      nameservers:", f"        addresses: [{', '.join(plan.dns)}]"] if plan.dns else []
    else:
        lines.append("      dhcp4: true")
    return "\n".join(lines) + "\n"


def interface_names(text: str) -> set[str]:
    """The interfaces that a file describes: the keys one level below each kind of interface."""
    found = set()
    for group in _GROUPS.finditer(text):
        depth = len(group[1])
        inner: int | None = None
        for line in text[group.end() :].splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            indent = len(line) - len(line.lstrip())
            if indent <= depth:
                break
            inner = indent if inner is None else inner
            key = re.match(r"\s*[\"']?([^\"':]+)[\"']?:", line)
            if indent == inner and key:
                found.add(key[1])
    return found


def _renderer(tree: Tree) -> str:
    texts = [tree.read(path) or "" for path in tree.glob(_FILES)]
    found = [match[1] for text in texts for match in _RENDERER.finditer(text)]
    return found[-1] if found else "networkd"
