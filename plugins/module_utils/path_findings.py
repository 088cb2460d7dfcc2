# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the path from a source to its target can carry the migration, from what was tried and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .cloud.target import Target
from .findings import Finding
from .reach import (
    FAILED,
    NO_ROUTE,
    PROXY_REFUSES,
    PROXY_SILENT,
    PROXY_WAITS,
    TIMEOUT,
    UNREACHABLE,
    Attempt,
    attempts_from,
)
from .security_groups import ACCEPT, decide

# States in which something runs on the instance that answers, if only by refusing.
ANSWERING = ("RUNNING", "RESCUE_MODE")
# A part of the path that the writes alone may take, so that the copy comes to an end in reasonable time.
COMFORTABLE = 0.5


def reach_findings(target: Target, facts: Mapping[str, Any], port: int, ssh_port: int) -> Iterator[Finding]:
    """What the source's attempts to connect say about the landing, before there is one.

    Nothing listens at the agent's port yet: a refusal is the good answer, since it came the whole way and back.
    """
    tried = attempts_from(facts.get("reach") or ())
    ours = [attempt for attempt in tried if attempt.port == port]
    for attempt in ours:
        if not attempt.answered:
            yield _unanswered(target, attempt, tried, ssh_port, facts.get("proxy") or ())


def _unanswered(
    target: Target, attempt: Attempt, tried: Sequence[Attempt], ssh_port: int, proxies: Sequence[str]
) -> Finding:
    where = f"{attempt.address}:{attempt.port}"
    evidence = {**attempt.record(), "state": target.state, "proxies": list(proxies)}
    # The agent asks no proxy but the one that it is given.
    around = (
        f" The proxy that the source's environment names ({', '.join(proxies)}) is not used for it unless"
        " fleetlift_proxy names it."
        if proxies
        else ""
    )
    if attempt.outcome in (PROXY_REFUSES, PROXY_SILENT):
        return Finding(
            "PROXY_UNUSABLE",
            "blocker",
            target.instance_id,
            f"The source's proxy (fleetlift_proxy) opens no tunnel to {where}: {attempt.detail}.",
            f"Have the proxy allow CONNECT to port {attempt.port} without a password, correct fleetlift_proxy, or let"
            " the source connect directly.",
            evidence,
        )
    if attempt.outcome == PROXY_WAITS:
        return Finding(
            "PORT_NOT_PROBED",
            "note",
            target.instance_id,
            f"The source's proxy takes orders for {where}, but nothing listens there yet, and a proxy does not tell"
            f" whether the way is open: {attempt.detail}.",
            "Nothing: the landing is reached or not before anything is copied.",
            evidence,
        )
    if attempt.outcome == NO_ROUTE or (attempt.outcome == UNREACHABLE and target.state in ANSWERING):
        return Finding(
            "NO_ROUTE_TO_TARGET",
            "blocker",
            target.instance_id,
            f"There is no route from the source to {where}: {attempt.detail}.{around}",
            "Connect the two networks first (peering, VPN, CCN or Direct Connect, and routes on both sides), or use the"
            " target's public address with fleetlift_landing_address.",
            evidence,
        )
    if attempt.outcome == FAILED:
        return Finding(
            "PORT_FILTERED",
            "blocker",
            target.instance_id,
            f"The source may not connect to {where}: {attempt.detail}. A firewall on the source says so.{around}",
            f"Allow outgoing TCP {attempt.port} to {attempt.address} on the source.",
            evidence,
        )
    if target.state not in ANSWERING:
        return Finding(
            "PORT_NOT_PROBED",
            "note",
            target.instance_id,
            f"Whether the source reaches {where} cannot be tried: the target is {target.state}, and nothing answers.",
            "Start it and run again to have the path tried, or go on: the landing is reached or not before anything is"
            " copied.",
            evidence,
        )
    return Finding(
        "PORT_FILTERED",
        "blocker" if _certain(target, attempt, tried, ssh_port) else "warning",
        target.instance_id,
        f"Nothing comes back from {where}, though the target is {target.state}: {attempt.detail}. Something on the way"
        " drops the source's packets: a firewall on its side, or one on the system that runs on the target now,"
        " which is"
        f" gone in the landing.{around}",
        f"Allow outgoing TCP {attempt.port} from the source to {attempt.address}; the answer 'connection refused' is a"
        " good one before the landing.",
        evidence,
    )


def _certain(target: Target, attempt: Attempt, tried: Sequence[Attempt], ssh_port: int) -> bool:
    """Whether only the way can be silent: the system on the target may drop one port, but hardly its own SSH."""
    if attempt.outcome != TIMEOUT or target.state == "RESCUE_MODE":
        return True
    others = [each for each in tried if each.port == ssh_port and each.address == attempt.address]
    let_in = [
        decide(target.ingress, protocol="tcp", port=number, source_address=None).action == ACCEPT
        for number in (attempt.port, ssh_port)
    ]
    return bool(others) and all(let_in) and not any(each.answered for each in others)


def rate_findings(
    source: str, facts: Mapping[str, Any], devices: Iterable[str], bandwidth_limit: int
) -> Iterator[Finding]:
    """Whether the copy can ever catch up with what is written to *devices*. Rates in bytes per second."""
    measured = (facts.get("probe") or {}).get("bytes_per_second")
    known = [float(rate) for rate in (measured, bandwidth_limit or None) if rate]
    wanted = set(devices)
    disks = [disk for disk in facts.get("disks") or () if disk["path"] in wanted]
    now = sum(disk.get("write_bytes_per_second") or 0.0 for disk in disks)
    ever = sum(disk.get("write_bytes_per_second_since_boot") or 0.0 for disk in disks)
    if not known or max(now, ever) < COMFORTABLE * min(known):
        return
    path = min(known)
    hopeless = ever >= path and now >= path
    yield Finding(
        "WRITES_EXCEED_PATH",
        "blocker" if hopeless else "warning",
        source,
        f"{_rate(now)} are written to its disks now, {_rate(ever)} on average since it booted, and the path carries"
        f" {_rate(path)}{'' if measured else ' (fleetlift_bandwidth_limit)'}. Unless the changes compress well or"
        " hit the"
        f" same blocks again, the copy {'never catches up' if hopeless else 'may take very long to catch up'}.",
        "Give it more bandwidth, migrate it when less is written, or stop what writes most earlier than at the"
        " cutover.",
        {"written": round(now), "written_since_boot": round(ever), "path": round(path), "probe": facts.get("probe")},
    )


def _rate(rate: float) -> str:
    return f"{rate / 1e6:.1f} MB/s"
