# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd-networkd's files (systemd.network(5))."""

from __future__ import annotations

import fnmatch
import re

from .situation import NetworkPlan
from .tree import Tree

CONCERN = "network"
DIRECTORY = "/etc/systemd/network"
PATH = f"{DIRECTORY}/10-fleetlift.network"
_NAMES = "en* eth*"
_SAMPLES = ("eth0", "ens5", "enp0s3")
_NAME = re.compile(r"^\s*Name\s*=\s*(.*?)\s*$", re.MULTILINE)
# A driver is hardware, too: Amazon Linux 2023 asks for an address on NICs of AWS's drivers only.
_BINDING = re.compile(r"^\s*(?:MACAddress|PermanentMACAddress|Path|Driver)\s*=\s*\S", re.MULTILINE)
VENDOR = "/usr/lib/systemd/network/*.network"
_ENABLED = "/etc/systemd/system/*.wants/systemd-networkd.service"
_DHCP = re.compile(r"^\s*DHCP\s*=\s*(?:yes|true|1|ipv4|both|v4)\s*$", re.MULTILINE | re.IGNORECASE)
_KIND = re.compile(r"^\s*Kind\s*=\s*(?:bond|bridge|vlan|team)\s*$", re.MULTILINE)
_KIND_MATCH = re.compile(r"^\s*Kind\s*=\s*(?!!)\S", re.MULTILINE)
_TYPE = re.compile(r"^\s*Type\s*=\s*ether\s*$", re.MULTILINE)


def present(tree: Tree) -> bool:
    return bool(_wired(tree))


def enabled(tree: Tree) -> bool:
    """Whether it is started at all."""
    return bool(tree.glob(_ENABLED))


def named(tree: Tree) -> bool:
    del tree
    return False


def fits(tree: Tree, plan: NetworkPlan) -> bool:
    """The first file decides: it has to match a NIC by any name, and ask for its address."""
    files = _wired(tree) or _vendor(tree)
    if plan.mode != "dhcp" or (PATH in files and tree.read(PATH) != render(plan)):
        return list(files) == [PATH] and tree.read(PATH) == render(plan)
    if any(_BINDING.search(text) or not _matches_any_nic(text) for text in files.values()):
        return False
    return bool(files) and bool(_DHCP.search(next(iter(files.values()))))


def adapt(tree: Tree, plan: NetworkPlan) -> set[str]:
    nics: set[str] = set()
    for path, text in _wired(tree).items():
        nics.update(name for found in _NAME.finditer(text) for name in found[1].split() if not _is_pattern(name))
        if path != PATH:
            tree.remove(CONCERN, path)
    for path in tree.glob(f"{DIRECTORY}/*.netdev"):
        text = tree.read(path) or ""
        if _KIND.search(text):
            nics.update(found[1] for found in _NAME.finditer(text))
            tree.remove(CONCERN, path)
    tree.write(CONCERN, PATH, render(plan))
    return nics


def render(plan: NetworkPlan) -> str:
    """The file for NICs of any name."""
    lines = ["[Match]", f"Name={_NAMES}", "", "[Network]"]
    if plan.mode == "static":
        lines += [f"Address={plan.address}"]
        lines += [f"Gateway={plan.gateway}"] if plan.gateway else []
        lines += [f"DNS={server}" for server in plan.dns]
    else:
        lines += ["DHCP=yes"]
    return "\n".join(lines) + "\n"


def _wired(tree: Tree) -> dict[str, str]:
    """The files that configure a wired NIC or what was built on one, by path."""
    virtual = ("lo", "docker*", "veth*", "virbr*", "wg*", "tun*", "tap*", "wl*", "cni*", "flannel*", "cali*", "podman*")
    found = {}
    for path in tree.glob(f"{DIRECTORY}/*.network"):
        text = tree.read(path) or ""
        names = [name for match in _NAME.finditer(text) for name in match[1].split()]
        if (
            _TYPE.search(text)
            or _BINDING.search(text)
            or any(not any(fnmatch.fnmatchcase(name, each) for each in virtual) for name in names)
        ):
            found[path] = text
    return found


def _vendor(tree: Tree) -> dict[str, str]:
    """The distribution's files for any NIC by DHCP, which are in force as long as nothing in /etc says otherwise."""
    texts = {path: tree.read(path) or "" for path in tree.glob(VENDOR)}
    fitting = {path: text for path, text in texts.items() if _matches_any_nic(text) and not _BINDING.search(text)}
    return {path: text for path, text in fitting.items() if _DHCP.search(text)}


def _matches_any_nic(text: str) -> bool:
    names = [name for found in _NAME.finditer(text) for name in found[1].split()]
    virtual = _KIND_MATCH.search(text) is not None
    return (bool(_TYPE.search(text)) and not virtual) or all(
        any(fnmatch.fnmatchcase(nic, name) for name in names) for nic in _SAMPLES
    )


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[!")
