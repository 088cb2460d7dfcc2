# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the concerns are told: the operator's wishes and what is known about the copy's disks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleetlift_agent.errors import AgentError

from .names import Names

CONCERNS = (
    "partition_table",
    "fstab",
    "crypttab",
    "mdadm",
    "lvm",
    "network",
    "nic_names",
    "guest_tools",
    "cloud_init",
    "kernel_command_line",
    "initramfs",
    "boot_loader",
    "selinux",
)
_ADDRESS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}/[0-9]{1,2}\Z")
_HOST = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}\Z")
_NIC = re.compile(r"[A-Za-z0-9_.:-]{1,15}\Z")
_CONSOLE = re.compile(r"[A-Za-z0-9,/]{1,40}\Z")


@dataclass(frozen=True)
class NetworkPlan:
    """How the first NIC gets its address: dhcp, static, or keep (the configuration is left alone)."""

    mode: str = "dhcp"
    nic: str = ""
    address: str = ""
    gateway: str = ""
    dns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What the operator wants. ``timeout`` is for one command in the copy, in seconds."""

    skip: frozenset[str] = frozenset()
    firmware: str = "auto"
    grow: bool = False
    root: str = ""
    network: NetworkPlan = NetworkPlan()
    consoles: tuple[str, ...] = ()
    cloud_init: str = "safe"
    timeout: float = 1800.0


@dataclass(frozen=True)
class Situation:
    """The copy as a whole. ``firmware`` is bios or uefi: what the target boots with."""

    names: Names
    firmware: str
    options: Options = field(default_factory=Options)


def parse_options(value: Mapping[str, Any]) -> Options:
    """The options of a request. Raises AgentError ADAPT_REQUEST_INVALID."""
    network = value.get("network") or {}
    plan = NetworkPlan(
        mode=_choice(network, "mode", ("dhcp", "static", "keep")),
        nic=_matching(network, "nic", _NIC),
        address=_matching(network, "address", _ADDRESS),
        gateway=_matching(network, "gateway", _HOST),
        dns=tuple(_host(each) for each in network.get("dns") or ()),
    )
    if plan.mode == "static" and not plan.address:
        raise invalid("a static network needs an address such as 10.0.0.5/24")
    skip = frozenset(str(each) for each in value.get("skip") or ())
    unknown = sorted(skip - set(CONCERNS))
    if unknown:
        raise invalid(f"there is no concern {', '.join(unknown)}; there are {', '.join(CONCERNS)}")
    consoles = tuple(str(each) for each in value.get("consoles") or ())
    if not all(_CONSOLE.match(each) for each in consoles):
        raise invalid(f"{', '.join(consoles)} are not consoles such as tty0 and ttyS0,115200")
    return Options(
        skip=skip,
        firmware=_choice(value, "firmware", ("auto", "bios", "uefi")),
        grow=bool(value.get("grow", False)),
        root=str(value.get("root") or ""),
        network=plan,
        consoles=consoles,
        cloud_init=_choice(value, "cloud_init", ("safe", "disabled", "keep")),
        timeout=float(value.get("timeout") or 1800),
    )


def invalid(cause: str) -> AgentError:
    return AgentError("ADAPT_REQUEST_INVALID", cause, "Correct the options of the boot adaptation", subject="request")


def _choice(value: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    chosen = str(value.get(name) or allowed[0])
    if chosen not in allowed:
        raise invalid(f"{name} is {chosen!r} instead of one of {', '.join(allowed)}")
    return chosen


def _matching(value: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    text = str(value.get(name) or "")
    if text and not pattern.match(text):
        raise invalid(f"{name} is {text!r}")
    return text


def _host(value: Any) -> str:
    text = str(value)
    if not _HOST.match(text):
        raise invalid(f"the name server {text!r} is not an address")
    return text
