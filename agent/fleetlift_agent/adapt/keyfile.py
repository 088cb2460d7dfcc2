# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NetworkManager's connection profiles (nm-settings-keyfile(5))."""

from __future__ import annotations

import configparser
import re
import uuid

from .situation import NetworkPlan
from .tree import Tree

CONCERN = "network"
DIRECTORY = "/etc/NetworkManager/system-connections"
PATH = f"{DIRECTORY}/fleetlift.nmconnection"
_SETTINGS = ("/etc/NetworkManager/NetworkManager.conf", "/etc/NetworkManager/conf.d/*.conf",
             "/usr/lib/NetworkManager/conf.d/*.conf")  # fmt: skip
_NO_AUTO = re.compile(r"^\s*no-auto-default\s*=\s*\*", re.MULTILINE)
# Profiles that described the old network; others (VPN, Wi-Fi, containers' dummies) are left alone.
_WIRED = ("ethernet", "802-3-ethernet", "bond", "bridge", "team", "vlan", "infiniband")
_SLAVES = ("bond", "bridge", "team")
# One profile, made from a name: the same on every run.
_UUID = uuid.uuid5(uuid.NAMESPACE_DNS, "fleetlift.cvm")


def present(tree: Tree) -> bool:
    return bool(_profiles(tree))


def enabled(tree: Tree) -> bool:
    """Whether it is started at all."""
    return bool(tree.glob("/etc/systemd/system/*.wants/NetworkManager.service"))


def named(tree: Tree) -> bool:
    del tree
    return False


def fits(tree: Tree, plan: NetworkPlan) -> bool:
    """One wired profile, bound to no NIC, that asks for its address; or the planned one."""
    profiles = _profiles(tree)
    if not profiles:
        # It asks for an address on every wired NIC of its own accord, unless it has been told not to.
        texts = [tree.read(path) or "" for pattern in _SETTINGS for path in tree.glob(pattern)]
        return plan.mode == "dhcp" and not any(_NO_AUTO.search(text) for text in texts)
    if list(profiles) == [PATH]:
        return tree.read(PATH) == render(plan)
    if len(profiles) != 1 or plan.mode != "dhcp":
        return False
    profile = next(iter(profiles.values()))
    bound = profile.get("connection", "interface-name", fallback="") or profile.get(
        "ethernet", "mac-address", fallback=profile.get("802-3-ethernet", "mac-address", fallback="")
    )
    return not bound and profile.get("ipv4", "method", fallback="auto") == "auto"


def adapt(tree: Tree, plan: NetworkPlan) -> set[str]:
    nics = set()
    for path, profile in _profiles(tree).items():
        nics.add(profile.get("connection", "interface-name", fallback=""))
        if path != PATH:
            tree.remove(CONCERN, path)
    # NetworkManager ignores a profile that others may read.
    tree.write(CONCERN, PATH, render(plan), mode=0o600)
    return nics - {""}


def render(plan: NetworkPlan) -> str:
    """A profile for the first wired NIC that appears."""
    lines = ["[connection]", "id=fleetlift", f"uuid={_UUID}", "type=ethernet", "autoconnect-priority=1", ""]
    lines += ["[ethernet]", "", "[ipv4]"]
    if plan.mode == "static":
        gateway = f",{plan.gateway}" if plan.gateway else ""
        lines += [f"address1={plan.address}{gateway}"]
        lines += [f"dns={';'.join(plan.dns)};"] if plan.dns else []
        lines += ["method=manual"]
    else:
        lines += ["method=auto"]
    return "\n".join([*lines, "", "[ipv6]", "method=auto", ""])


def _profiles(tree: Tree) -> dict[str, configparser.ConfigParser]:
    """The profiles of the old network by path. Without the suffix in releases before 1.14."""
    found = {}
    for path in tree.glob(f"{DIRECTORY}/*"):
        if not tree.is_file(path):
            continue
        profile = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
        try:
            profile.read_string(tree.read(path) or "")
        except configparser.Error:
            # Not a profile: NetworkManager does not read it either.
            continue
        if profile.get("connection", "type", fallback="") in _WIRED:
            found[path] = profile
    return found
