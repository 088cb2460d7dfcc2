# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What on a source names its own addresses, which do not move with it. Pure: texts of /proc/net and of files."""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN
# The boot adaptation rewrites these itself, or they are about others.
NOT_SEARCHED = (
    "/etc/network/", "/etc/netplan/", "/etc/NetworkManager/", "/etc/sysconfig/network", "/etc/systemd/network/",
    "/etc/resolv.conf", "/etc/ssh/ssh_known_hosts", "/etc/ssl/", "/etc/pki/", "/etc/selinux/", "/etc/alternatives/",
    "/etc/lvm/", "/etc/apparmor.d/", "/etc/mtab", "/etc/fonts/",
)  # fmt: skip
LARGEST_FILE = 256 << 10
MOST_FILES = 4000
MOST_MENTIONS = 50


def parse_fib_trie(text: str) -> list[str]:
    """The server's own IPv4 addresses, from the text of /proc/net/fib_trie: leaves that say ``/32 host LOCAL``."""
    found, last = [], ""
    for line in text.splitlines():
        leaf = re.search(r"\|-- (\S+)", line)
        if leaf:
            last = leaf[1]
        elif "/32 host LOCAL" in line and last:
            found.append(last)
    return [address for address in dict.fromkeys(found) if is_own(address)]


def parse_if_inet6(text: str) -> list[str]:
    """The server's own IPv6 addresses, from the text of /proc/net/if_inet6: 32 hexadecimal digits begin each line."""
    found = []
    for line in text.splitlines():
        digits = line.split(" ")[0]
        if re.fullmatch(r"[0-9a-f]{32}", digits):
            found.append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return [address for address in found if is_own(address)]


def is_own(address: str) -> bool:
    """Whether *address* is one that others know the server by: not of the loopback, the link or a bridge of its own."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or parsed.is_multicast)


# What is used inside of sites and clouds: RFC 1918, RFC 6598 and RFC 4193. Not what ``ipaddress`` calls private, which
# holds addresses for documentation as well.
_INSIDE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)


def is_inside(address: str) -> bool:
    """Whether *address* is one that is used inside of a site only. Raises ``ValueError`` for what is no address."""
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in _INSIDE if network.version == parsed.version)


def seen_as(reach: Iterable[Mapping[str, Any]], known: Iterable[str]) -> str | None:
    """The address from which a target sees the server, None where that is not certain enough.

    *reach* are the server's attempts to connect to the target, *known* the addresses by which others know it. Between
    two inside addresses, and between two public ones, nothing has a reason to translate; from inside to a public
    address something has to, and the server's one public address is what it is translated to.
    """
    for attempt in reach:
        local, remote = attempt.get("local"), attempt.get("address")
        try:
            if not local or is_inside(local) == is_inside(str(remote)):
                return str(local) if local else None
            outside = [address for address in dict.fromkeys(known) if not is_inside(address)]
        except ValueError:
            return None
        return outside[0] if len(outside) == 1 and not is_inside(str(remote)) else None
    return None


def parse_listeners(tcp: str, tcp6: str) -> list[dict[str, Any]]:
    """Who listens at one address only, from the texts of /proc/net/tcp and tcp6 (proc(5)): address and port.

    Addresses are in words of the processor's byte order; those that are all zero are every address, and not listed.
    """
    found = []
    for line in (*tcp.splitlines(), *tcp6.splitlines()):
        fields = line.split()
        if len(fields) < 4 or fields[3] != LISTEN or ":" not in fields[1]:
            continue
        digits, _colon, port = fields[1].partition(":")
        if re.fullmatch(r"[0-9A-F]{8}|[0-9A-F]{32}", digits):
            words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
            address = str(ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words)))
            if is_own(address):
                found.append({"address": address, "port": int(port, 16)})
    return [dict(pair) for pair in dict.fromkeys(tuple(entry.items()) for entry in found)]


def is_searched(path: str) -> bool:
    """Whether a file may name an address in a way that somebody has to change."""
    return not path.startswith(NOT_SEARCHED)


def mentions(path: str, text: str, addresses: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of *text* that name one of *addresses*, without their content: that may be a secret."""
    if not addresses:
        return []
    # A port may follow an IPv4 address, and more of the address an IPv6 one.
    ends = {True: r"(?![\w:])", False: r"(?!\w|\.\d)"}
    alternatives = [re.escape(address) + ends[":" in address] for address in sorted(addresses)]
    pattern = re.compile(r"(?<![\w.:])(" + "|".join(alternatives) + ")")
    return [
        {"file": path, "line": number, "address": found[1]}
        for number, line in enumerate(text.splitlines(), start=1)
        for found in [pattern.search(line)]
        if found and not line.lstrip().startswith(("#", ";"))
    ]


def pointing_at(record: Mapping[str, Any]) -> list[str]:
    """What points at the addresses, as lines for people, from the facts' ``addresses``."""
    return [
        *(f"{entry['address']}:{entry['port']} is listened at" for entry in record.get("listeners") or ()),
        *(f"{entry['file']}:{entry['line']} names {entry['address']}" for entry in record.get("mentions") or ()),
        *(f"{entry['name']} resolves to {', '.join(entry['addresses'])}" for entry in record.get("names") or ()),
    ]


def resolving_to(names: Mapping[str, Iterable[str]], addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Those of *names* that resolve to one of *addresses*, with the ones they do."""
    found = []
    for name, resolved in names.items():
        own = [address for address in dict.fromkeys(resolved) if address in addresses]
        if own:
            found.append({"name": name, "addresses": own})
    return found
