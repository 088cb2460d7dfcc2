# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's network: one router namespace, a point-to-point link for every machine, no way out.

Every packet between two machines is forwarded by the router, so its nftables rules are the security
groups and its ``tc`` limits are the instances' bandwidth. Machines of one subnet believe that they
share a wire: the router answers ARP for all of them (proxy_arp).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lab.cloud.hypervisor import PacketRule
from lab.command import run
from lab.errors import LabError
from lab.ledger import Ledger
from lab.namespaces import in_netns

CONTROLLER_ADDRESS = "10.98.0.2"
CONTROLLER_GATEWAY = "10.98.0.1"
API_ADDRESS = "10.98.0.10"
API_PORT = 80
COS_ADDRESS = "10.98.0.11"
COS_PORT = 80
# A virtual machine's own interface on the host's side, and what ties it to the machine's link.
TAP = "tap0"
BRIDGE = "br0"
# Where the platform's DHCP server answers: on the machine's own wire and nowhere else.
DHCP_ADDRESS = "169.254.0.1"
# The least that the cloud lets in, whatever is bought for the way out, in Mbit/s.
LEAST_INBOUND = 10


EVERYTHING = PacketRule("all", (), "0.0.0.0/0", "ACCEPT")


@dataclass(frozen=True)
class Port:
    """A machine's place on the router: ``link`` is the interface there, ``namespace`` the machine's own."""

    name: str
    namespace: str
    link: str
    addresses: tuple[str, ...]
    gateway: str
    guarded: bool
    up: bool = True
    virtual: bool = False

    @property
    def bridge(self) -> str:
        """The interface in the namespace of a virtual machine that its platform listens on."""
        return BRIDGE

    @property
    def guest_mac(self) -> str:
        """The address that a virtual machine's NIC has, in whatever lab: it is part of a snapshot."""
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        return ":".join(["52:54:00", *(digest[i : i + 2] for i in range(0, 6, 2))])

    @property
    def mac(self) -> str:
        """A stable, locally administered address of the machine's interface."""
        digest = hashlib.sha256(self.namespace.encode()).hexdigest()
        return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


def port_statements(protocol: str, ports: tuple[tuple[int, int], ...]) -> str:
    """Return the nftables match for one rule's protocol and ports."""
    if protocol == "all":
        return ""
    if protocol in ("tcp", "udp"):
        if not ports:
            return f"meta l4proto {protocol} "
        listed = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ports)
        return f"{protocol} dport {{ {listed} }} "
    return f"meta l4proto {protocol} "


def chain_rules(rules: Sequence[PacketRule], *, outward: bool = False) -> list[str]:
    """Return the nftables rules of one instance's chain, first match first.

    What the chain for packets to it does not match is dropped by its caller. The chain for packets ``outward`` ends
    with a drop, and hands what is accepted to the rules of whoever it goes to.
    """
    lines = []
    field, accept = ("daddr", "return") if outward else ("saddr", "accept")
    for rule in rules:
        if ":" in rule.peer:
            continue  # The lab's network is IPv4 only: no packet can match.
        verdict = accept if rule.action == "ACCEPT" else "drop"
        peer = "" if rule.peer == "0.0.0.0/0" else f"ip {field} {rule.peer} "
        lines.append(f"{peer}{port_statements(rule.protocol, rule.ports)}{verdict}")
    return [*lines, "drop"] if outward else lines


def shaper(device: str, mbps: int) -> list[str]:
    """Return the ``tc`` words that limit what leaves through ``device`` to ``mbps`` Mbit/s."""
    # A burst of 10 ms keeps tbf exact at high rates; veth hands over segments of up to 64 KiB.
    burst = max(131072, mbps * 1_000_000 // 8 // 100)
    return [
        "qdisc", "replace", "dev", device, "root", "tbf",
        "rate", f"{mbps}mbit", "burst", str(burst), "latency", "100ms",
    ]  # fmt: skip


def answer_for_neighbours(link: str) -> None:
    """Have the router answer ARP on ``link`` for all addresses it has a route to, at once."""
    Path(f"/proc/sys/net/ipv4/conf/{link}/proxy_arp").write_text("1")
    # By default such an answer waits up to 0.8 s, in favour of a real neighbour.
    Path(f"/proc/sys/net/ipv4/neigh/{link}/proxy_delay").write_text("0")


class Network:
    """The namespaces, links, rules and limits of one lab."""

    def __init__(self, lab: str, ledger: Ledger) -> None:
        self._lab = lab
        self._ledger = ledger
        self._lock = threading.RLock()
        self._ports: dict[str, Port] = {}
        self._next_link = 1
        self.router = f"fl-{lab}-net"
        self.controller = f"fl-{lab}-ctl"

    def start(self) -> None:
        """Make the router and the controller's namespace."""
        for namespace in (self.router, self.controller):
            self._add_namespace(namespace)
        run(
            ["ip", "-batch", "-"],
            stdin=f"link add ctl netns {self.router} type veth peer name eth0 netns {self.controller}\n",
        )
        run(
            ["ip", "-n", self.router, "-batch", "-"],
            stdin=f"addr add {CONTROLLER_GATEWAY}/24 dev ctl\naddr add {API_ADDRESS}/32 dev lo\n"
            f"addr add {COS_ADDRESS}/32 dev lo\nlink set ctl up\n",
        )
        run(
            ["ip", "-n", self.controller, "-batch", "-"],
            stdin=f"addr add {CONTROLLER_ADDRESS}/24 dev eth0\nlink set eth0 up\n"
            f"route add default via {CONTROLLER_GATEWAY}\n",
        )
        in_netns(self.router, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        # COS answers the controller and, inside the region, the instances and their landings; never a source.
        self._nft(
            f"""
            table inet lab {{
              map instances {{ type ifname : verdict; }}
              map senders {{ type ifname : verdict; }}
              map translated {{ type ipv4_addr : ipv4_addr; }}
              chain prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                dnat ip to ip daddr map @translated
              }}
              chain forward {{
                type filter hook forward priority 0; policy drop;
                ct state established,related accept
                iifname vmap @senders
                oifname vmap @instances
                oifname "s*" iifname {{ "ctl", "s*" }} accept
              }}
              chain input {{
                type filter hook input priority 0; policy drop;
                ct state established,related accept
                iifname vmap @senders
                icmp type echo-request accept
                iifname "ctl" ip daddr {API_ADDRESS} tcp dport {API_PORT} accept
                iifname {{ "ctl", "g*", "lo" }} ip daddr {COS_ADDRESS} tcp dport {COS_PORT} accept
              }}
            }}
            """
        )

    def _add_namespace(self, name: str) -> None:
        if Path("/run/netns", name).exists():
            raise LabError(
                f"a network namespace {name} exists already and this lab did not make it",
                f"Choose another --name, or remove it if you are sure: ip netns delete {name}",
            )
        self._ledger.namespace(name)
        run(["ip", "netns", "add", name])

        def settle() -> None:
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")

        in_netns(name, settle)
        run(["ip", "-n", name, "link", "set", "lo", "up"])

    def _nft(self, script: str) -> None:
        run(["ip", "netns", "exec", self.router, "nft", "-f", "-"], stdin=script)

    def connect(
        self, name: str, addresses: Sequence[str], gateway: str, *, guarded: bool, virtual: bool = False
    ) -> Port:
        """Make a machine's namespace and link; a guarded machine gets only what its rules let through.

        A ``virtual`` machine's addresses are its guest's: it finds a tap in its namespace. Only the first of them is
        known to the guest; what is sent to the others is translated, as a public network does.
        """
        with self._lock:
            prefix = "g" if guarded else "s"
            port = Port(
                name=name,
                namespace=f"fl-{self._lab}-{name}",
                link=f"{prefix}{self._next_link}",
                addresses=tuple(addresses),
                gateway=gateway,
                guarded=guarded,
                virtual=virtual,
            )
            self._next_link += 1
            self._add_namespace(port.namespace)
            run(
                ["ip", "-batch", "-"],
                stdin=f"link add {port.link} netns {self.router} type veth "
                f"peer name eth0 address {port.mac} netns {port.namespace}\n",
            )
            self._ports[name] = port
            if guarded:
                self._nft(
                    f"add chain inet lab to_{port.link}\n"
                    f"add chain inet lab from_{port.link}\n"
                    f'add element inet lab instances {{ "{port.link}" : jump to_{port.link} }}\n'
                    f'add element inet lab senders {{ "{port.link}" : jump from_{port.link} }}\n'
                )
            self._plug(port)
            if virtual:
                self._bridge(port)
            else:
                self.address(port)
            return port

    def _bridge(self, port: Port) -> None:
        """Tie a tap for the guest to the machine's link, and translate its public addresses."""
        lines = [
            f"link add {BRIDGE} type bridge forward_delay 0",
            f"tuntap add dev {TAP} mode tap",
            f"link set dev {TAP} master {BRIDGE}",
            f"link set dev eth0 master {BRIDGE}",
            f"addr add {DHCP_ADDRESS}/32 dev {BRIDGE}",
            *(f"link set dev {device} up" for device in ("lo", "eth0", TAP, BRIDGE)),
        ]
        run(["ip", "-n", port.namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")
        first, *others = port.addresses
        if others:
            elements = ", ".join(f"{address} : {first}" for address in others)
            self._nft(f"add element inet lab translated {{ {elements} }}\n")

    def _plug(self, port: Port) -> None:
        lines = [f"addr replace {port.gateway}/32 dev {port.link}", f"link set {port.link} up"]
        lines += [f"route replace {address}/32 dev {port.link}" for address in port.addresses]
        run(["ip", "-n", self.router, "-batch", "-"], stdin="\n".join(lines) + "\n")
        in_netns(self.router, partial(answer_for_neighbours, port.link))

    def address(self, port: Port) -> None:
        """Give the machine's interface its addresses and default route, as the platform does at each boot."""
        first, *others = port.addresses
        lines = [f"addr replace {first}/24 dev eth0", *(f"addr replace {other}/32 dev eth0" for other in others)]
        lines += ["link set lo up", "link set eth0 up", f"route replace default via {port.gateway} src {first}"]
        run(["ip", "-n", port.namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def port(self, name: str) -> Port:
        """Return the port of the machine ``name``."""
        with self._lock:
            try:
                return self._ports[name]
            except KeyError:
                known = ", ".join(sorted(self._ports)) or "none"
                raise LabError(f"the lab has no machine {name!r}", f"Its machines: {known}") from None

    def set_link(self, name: str, *, up: bool) -> None:
        """Plug or pull the machine's cable."""
        with self._lock:
            port = replace(self.port(name), up=up)
            if up:
                self._plug(port)
            else:
                run(["ip", "-n", self.router, "link", "set", port.link, "down"])
            self._ports[name] = port

    def set_policies(
        self, name: str, ingress: Sequence[PacketRule], egress: Sequence[PacketRule] = (EVERYTHING,)
    ) -> None:
        """Put an instance's rules in force, at once and as a whole."""
        with self._lock:
            link = self.port(name).link
            lines = [f"flush chain inet lab {direction}_{link}" for direction in ("to", "from")]
            lines += [f"add rule inet lab to_{link} {rule}" for rule in chain_rules(ingress)]
            lines += [f"add rule inet lab from_{link} {rule}" for rule in chain_rules(egress, outward=True)]
            self._nft("\n".join(lines) + "\n")

    def set_bandwidth(self, name: str, mbps_out: int) -> None:
        """Limit an instance's link: ``mbps_out`` Mbit/s out, as much but not less than 10 in; 0 is no limit at all."""
        with self._lock:
            port = self.port(name)
            if mbps_out == 0:
                for namespace, device in ((self.router, port.link), (port.namespace, "eth0")):
                    shown = run(["tc", "-n", namespace, "qdisc", "show", "dev", device])
                    if "tbf" in shown:
                        run(["tc", "-n", namespace, "qdisc", "delete", "dev", device, "root"])
                return
            run(["tc", "-n", self.router, *shaper(port.link, max(LEAST_INBOUND, mbps_out))])
            run(["tc", "-n", port.namespace, *shaper("eth0", mbps_out)])

    def disconnect(self, name: str) -> None:
        """Take a machine's link and namespace away."""
        with self._lock:
            port = self._ports.pop(name)
            if port.virtual and len(port.addresses) > 1:
                self._nft(f"delete element inet lab translated {{ {', '.join(port.addresses[1:])} }}\n")
            if port.guarded:
                self._nft(
                    f'delete element inet lab instances {{ "{port.link}" }}\ndelete chain inet lab to_{port.link}\n'
                    f'delete element inet lab senders {{ "{port.link}" }}\ndelete chain inet lab from_{port.link}\n'
                )
            run(["ip", "-n", self.router, "link", "delete", port.link])
            run(["ip", "netns", "delete", port.namespace])
