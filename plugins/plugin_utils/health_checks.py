# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a server has to answer to be healthy: ports, URLs, its SSH identity, commands, the state of systemd.

A check is tried until it succeeds or its time is over. All of them are tried, so that whoever looks for the cause sees
everything that is wrong; after the first that failed the others get one try each.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.urls import open_url

from ..module_utils.findings import Refusal, refuse
from ..module_utils.ssh_banner import read_banner
from .remote_agent import RemoteShell

# Seconds between two tries, and for one try over the network.
PAUSE = 0.5
TRY_TIMEOUT = 5
# How much of a body or an output is looked at and shown, in characters.
BODY_LIMIT = 1 << 20
SHOWN = 300
KINDS = ("port", "url", "ssh", "command", "systemd")


class Unhealthy(Exception):
    """One try did not succeed; the text says what was seen."""


@dataclass(frozen=True)
class Place:
    """The server: its address, a shell on it, and the public host keys that it must have (key type and key)."""

    address: str
    shell: RemoteShell | None
    host_keys: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """How one check ended. ``seconds`` since the first check began; ``evidence`` is what the last try saw."""

    check: str
    ok: bool
    seconds: float
    tries: int
    evidence: str

    def record(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "ok": self.ok,
            "seconds": self.seconds,
            "tries": self.tries,
            "evidence": self.evidence,
        }


def kind_of(check: dict[str, Any]) -> str:
    """Which kind *check* is. Raises ``Refusal`` HEALTH_CHECK_INVALID when it is none or several."""
    given = [kind for kind in KINDS if check.get(kind) not in (None, False)]
    if len(given) != 1:
        raise refuse(
            "HEALTH_CHECK_INVALID",
            "health",
            f"A health check is exactly one of {', '.join(KINDS)}, and this one is {' and '.join(given) or 'none'}.",
            "Correct fleetlift_health_checks.",
        )
    for name in ("body", "output"):
        try:
            re.compile(check.get(name) or "")
        except re.error as error:
            raise refuse(
                "HEALTH_CHECK_INVALID",
                "health",
                f"{check[name]!r} is not a regular expression: {error}.",
                "Correct fleetlift_health_checks.",
            ) from error
    return given[0]


def name_of(check: dict[str, Any]) -> str:
    """How the user recognises the check."""
    kind = kind_of(check)
    return {
        "port": lambda: f"port {check['port']}",
        "url": lambda: str(check["url"]),
        "ssh": lambda: f"SSH on port {check.get('ssh_port') or 22}",
        "command": lambda: f"command {check['command']}",
        "systemd": lambda: f"systemd {' or '.join(check['systemd'])}",
    }[kind]()


def attempt(place: Place, check: dict[str, Any]) -> str:
    """One try; returns what was seen. Raises Unhealthy, OSError or HTTPException when it does not succeed."""
    return ATTEMPTS[kind_of(check)](place, check)


def try_port(place: Place, check: dict[str, Any]) -> str:
    if check["port"] == 22:
        return read_banner(place.address, 22, timeout=TRY_TIMEOUT)
    socket.create_connection((place.address, check["port"]), TRY_TIMEOUT).close()
    return "connected"


def try_url(place: Place, check: dict[str, Any]) -> str:
    wanted = check.get("status") or 200
    verify = check.get("validate_certs") is not False
    try:
        with open_url(
            check["url"], timeout=TRY_TIMEOUT, use_proxy=False, http_agent="fleetlift", validate_certs=verify
        ) as answer:
            status, body = answer.status, answer.read(BODY_LIMIT)
    except HTTPError as error:
        status, body = error.code, error.read(BODY_LIMIT)
    if status != wanted:
        raise Unhealthy(f"status {status}, not {wanted}")
    text = body.decode("utf-8", "replace")
    if check.get("body") and not re.search(check["body"], text):
        raise Unhealthy(f"status {status}, and nothing in the body matches {check['body']!r}: {text[:SHOWN]!r}")
    return f"status {status}"


def try_ssh(place: Place, check: dict[str, Any]) -> str:
    """The server introduces itself, and with a host key of the source."""
    port = int(check.get("ssh_port") or 22)
    banner = read_banner(place.address, port, timeout=TRY_TIMEOUT)
    if not place.host_keys:
        return f"{banner}; no host keys are known to compare with"
    words = ["ssh-keyscan", "-T", str(TRY_TIMEOUT), "-p", str(port), place.address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TRY_TIMEOUT * 4, check=False)
    lines = [line.split()[1:3] for line in done.stdout.splitlines() if line and not line.startswith("#")]
    offered = {" ".join(words) for words in lines}
    known = {" ".join(key.split()[:2]) for key in place.host_keys}
    if not offered:
        raise Unhealthy(f"{banner}, but it offers no host key")
    if not offered & known:
        raise Unhealthy(f"{banner}, but none of its host keys is one of the source: it is another server")
    return f"{banner}; {len(offered & known)} host keys are the source's"


def try_command(place: Place, check: dict[str, Any]) -> str:
    answer = _shell(place).run(str(check["command"]))
    said = (answer.stdout + answer.stderr).strip()
    if answer.rc != int(check.get("rc") or 0):
        raise Unhealthy(f"exit status {answer.rc}: {said[-SHOWN:]}")
    if check.get("output") and not re.search(check["output"], answer.stdout):
        raise Unhealthy(f"nothing in the output matches {check['output']!r}: {said[-SHOWN:]}")
    return f"exit status {answer.rc}: {said[-SHOWN:]}"


def try_systemd(place: Place, check: dict[str, Any]) -> str:
    answer = _shell(place).run("systemctl is-system-running; systemctl --failed --no-legend --plain | head -n 20")
    lines = answer.stdout.strip().splitlines()
    state = lines[0].strip() if lines else "unknown"
    if state not in check["systemd"]:
        failed = ", ".join(line.split()[0] for line in lines[1:] if line.split())
        raise Unhealthy(f"the system is {state}" + (f"; failed units: {failed}" if failed else ""))
    return f"the system is {state}"


ATTEMPTS: dict[str, Callable[[Place, dict[str, Any]], str]] = {
    "port": try_port,
    "url": try_url,
    "ssh": try_ssh,
    "command": try_command,
    "systemd": try_systemd,
}


def _shell(place: Place) -> RemoteShell:
    if place.shell is None:
        raise Unhealthy("there is no connection on which to run a command")
    return place.shell


def run_check(place: Place, check: dict[str, Any], started: float, deadline: float) -> Outcome:
    """Try until it succeeds or *deadline* (``time.monotonic()``) has passed; once at the least."""
    tries = 0
    while True:
        tries += 1
        try:
            seen, ok = attempt(place, check), True
        except AnsibleConnectionFailure as error:
            seen, ok = f"no connection: {error}", False
        except (Unhealthy, OSError, HTTPException, subprocess.TimeoutExpired) as error:
            seen, ok = str(error) or type(error).__name__, False
        now = time.monotonic()
        if ok or now >= deadline:
            return Outcome(name_of(check), ok, round(now - started, 1), tries, seen)
        time.sleep(PAUSE)


def run_all(place: Place, checks: Sequence[dict[str, Any]], timeout: float) -> list[Outcome]:
    """Every check in its order, all together within *timeout* seconds, each within its own."""
    for check in checks:
        kind_of(check)
    started = time.monotonic()
    end = started + timeout
    outcomes: list[Outcome] = []
    for check in checks:
        now = time.monotonic()
        failed = any(not outcome.ok for outcome in outcomes)
        own = now + float(check["timeout"]) if check.get("timeout") else end
        outcomes.append(run_check(place, check, started, now if failed else min(own, end)))
    return outcomes


def failure(address: str, outcomes: Sequence[Outcome]) -> Refusal:
    """The finding for checks of which some failed."""
    failed = [outcome for outcome in outcomes if not outcome.ok]
    first = failed[0]
    others = f" {len(failed) - 1} others failed as well." if len(failed) > 1 else ""
    return refuse(
        "HEALTH_CHECK_FAILED",
        address,
        f"{first.check} of {address} did not become healthy in {first.seconds:g} s: {first.evidence.rstrip('.')}."
        + others,
        "Look at the instance's console (in the vendor's web console: the instance, Log in, VNC) and at the service"
        " there. To go back to the source run fleetlift.cvm.rollback, which stops the target first.",
        checks=[outcome.record() for outcome in outcomes],
    )
