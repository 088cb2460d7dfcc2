# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools of the old platform, which have nothing to talk to any more: disabled, never deleted."""

from __future__ import annotations

import posixpath

from .finding import Finding
from .situation import Situation
from .tree import Tree

CONCERN = "guest_tools"

# Names of services by the platform whose tools they belong to, as its own and the distributions' packages call them.
TOOLS = {
    "VMware": (
        "open-vm-tools",
        "vmtoolsd",
        "vgauth",
        "vgauthd",
        "vmware-tools",
        "vmware-tools-thinprint",
        "run-vmblock\\x2dfuse",
    ),
    "VirtualBox": ("vboxadd", "vboxadd-service", "vboxadd-x11", "vboxservice", "virtualbox-guest-utils"),
    "Hyper-V": (
        "hv-kvp-daemon",
        "hv-vss-daemon",
        "hv-fcopy-daemon",
        "hypervkvpd",
        "hypervvssd",
        "hypervfcopyd",
        "hv_kvp_daemon",
        "hv_vss_daemon",
        "hv_fcopy_daemon",
    ),
    "Xen": ("xe-linux-distribution", "xe-daemon", "xenstored-guest", "xen-guest-agent"),
    "Parallels": ("prltoolsd", "prl-x11"),
    "AWS": ("amazon-ssm-agent", "hibinit-agent", "amazon-cloudwatch-agent", "ec2-instance-connect"),
    "Azure": ("walinuxagent", "waagent"),
    "Google Cloud": (
        "google-guest-agent",
        "google-osconfig-agent",
        "google-startup-scripts",
        "google-shutdown-scripts",
        "google-accounts-daemon",
        "google-network-daemon",
        "google-clock-skew-daemon",
    ),
    "Alibaba Cloud": ("aliyun", "aliyun-service", "aegis", "cloudmonitor", "ecs_mq-service"),
    "hardware detection": ("kudzu",),
}
_UNIT_DIRECTORIES = ("/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system")
_SUFFIXES = (".service", ".mount")


def adapt(tree: Tree, situation: Situation) -> list[Finding]:
    del situation
    findings = []
    for platform, services in TOOLS.items():
        disabled = [service for service in services if _disable(tree, service)]
        if disabled:
            findings.append(
                Finding(
                    "GUEST_TOOLS_DISABLED",
                    "note",
                    platform,
                    f"{', '.join(disabled)} of the old platform ({platform}) will not start",
                    "Uninstall them when the server is there to stay",
                    {"services": disabled},
                )
            )
    return findings


def _disable(tree: Tree, service: str) -> bool:
    """Whether the service was there, under any init system."""
    found = [_disable_unit(tree, f"{service}{suffix}") for suffix in _SUFFIXES]
    return any([*found, _disable_sysv(tree, service), _disable_upstart(tree, service)])


def _disable_unit(tree: Tree, unit: str) -> bool:
    own = f"{_UNIT_DIRECTORIES[0]}/{unit}"
    if not any(tree.exists(f"{base}/{unit}") for base in _UNIT_DIRECTORIES):
        return False
    links = tree.glob(f"/etc/systemd/system/*.wants/{unit}") + tree.glob(f"/etc/systemd/system/*.requires/{unit}")
    for link in links:
        tree.remove(CONCERN, link)
    if tree.link_target(own) is not None or not tree.exists(own):
        tree.symlink(CONCERN, own, "/dev/null")
    return True


def _disable_sysv(tree: Tree, service: str) -> bool:
    """The start links of all run levels go; the stop links stay, as ``chkconfig off`` leaves them."""
    if not tree.exists(f"/etc/init.d/{service}"):
        return False
    links = [
        link
        for pattern in ("/etc/rc[0-6S].d/S[0-9][0-9]*", "/etc/rc.d/rc[0-6].d/S[0-9][0-9]*")
        for link in tree.glob(pattern)
        if posixpath.basename(link)[3:] == service
    ]
    for link in links:
        tree.remove(CONCERN, link)
    return bool(links)


def _disable_upstart(tree: Tree, service: str) -> bool:
    if not tree.exists(f"/etc/init/{service}.conf"):
        return False
    tree.write(CONCERN, f"/etc/init/{service}.override", "manual\n")
    return True
