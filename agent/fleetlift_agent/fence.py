# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cut a running source off from its network, but for the controller's SSH, and remember how to give it back.

The rules are nftables' and exist in the kernel only: a restart of the source ends them, as it starts its services. What
is not IP (ARP) goes on. The record of what was stopped is in the agent's directory, which is in RAM as well, so that a
new agent can undo what a killed one has done.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleetlift_agent.errors import AgentError
from fleetlift_agent.services import COMMAND_PATH, Outcome, run_command
from fleetlift_agent.state import write_json

TABLE = "fleetlift_fence"
RECORD = "fence.json"
# Before what the server's own firewall may accept (NF_IP_PRI_CONNTRACK_DEFRAG is -400, raw -300).
_PRIORITY = -310
_SECONDS = 30.0


@dataclass(frozen=True)
class Passage:
    """Whom the fence lets through: an address or network, to this server's TCP port."""

    address: str
    port: int

    @classmethod
    def parse(cls, value: Any) -> Passage:
        """From JSON. Raises AgentError ARGUMENT_INVALID."""
        try:
            network = ipaddress.ip_network(value["address"], strict=False)
            port = value["port"]
            if network.prefixlen and isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536:
                return cls(str(network), port)
        except (TypeError, KeyError, ValueError):
            pass
        raise AgentError(
            "ARGUMENT_INVALID",
            f"{value!r} is not whom a fence lets through",
            "Give an address or network of controllers and the TCP port of this server's SSH",
            subject="fence",
        )


def ruleset(passages: Sequence[Passage]) -> str:
    """The rules as nft reads them; what was there under the same name is replaced at once."""
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for hook, interface, address, port in (("input", "iif", "saddr", "dport"), ("output", "oif", "daddr", "sport")):
        lines += [
            f"  chain {hook} {{",
            f"    type filter hook {hook} priority {_PRIORITY}; policy drop;",
            f'    {interface} "lo" accept',
        ]
        for passage in passages:
            family = "ip6" if ":" in passage.address else "ip"
            lines.append(f"    {family} {address} {passage.address} tcp {port} {passage.port} accept")
        lines.append("  }")
    lines += ["  chain forward {", f"    type filter hook forward priority {_PRIORITY}; policy drop;", "  }", "}"]
    return "\n".join(lines) + "\n"


class Fence:
    """The fence of this server, with its record in ``directory``."""

    def __init__(self, directory: Path, nft: str | None = None) -> None:
        self._directory = directory
        self._nft = nft or shutil.which("nft", path=COMMAND_PATH)

    @property
    def stands(self) -> bool:
        """Whether the rules are in force."""
        return self._nft is not None and run_command([self._nft, "list", "table", "inet", TABLE], _SECONDS).status == 0

    def check(self, passages: Sequence[Passage]) -> None:
        """Raise AgentError FENCE_UNAVAILABLE, before anything is stopped, when this server cannot be fenced."""
        self._load(passages, "--check")

    def close(self, passages: Sequence[Passage], stopped: Sequence[str]) -> None:
        """Put the fence up; ``stopped`` are the services to start when it is taken down. Raises FENCE_UNAVAILABLE."""
        # First the record: a fence that nobody knows of would stay.
        write_json(self._directory / RECORD, {"services": list(stopped), "passages": [asdict(one) for one in passages]})
        self._load(passages)

    def open(self) -> list[str] | None:
        """Take the fence down; the services that were stopped for it, None when there was no fence.

        Raises AgentError FENCE_STUCK.
        """
        record = self._directory / RECORD
        if self.stands:
            assert self._nft is not None
            outcome = run_command([self._nft, "delete", "table", "inet", TABLE], _SECONDS)
            if outcome.status != 0:
                raise AgentError(
                    "FENCE_STUCK",
                    "The fence around this source could not be taken down",
                    f"On the source run: nft delete table inet {TABLE}",
                    {"output": outcome.output},
                    subject="fence",
                )
        elif not record.exists():
            return None
        services = json.loads(record.read_text(encoding="utf-8"))["services"] if record.exists() else []
        record.unlink(missing_ok=True)
        return [str(name) for name in services]

    def _load(self, passages: Sequence[Passage], *options: str) -> None:
        # nft reads a file, and this one is in RAM.
        script = self._directory / "fence.nft"
        script.write_text(ruleset(passages), encoding="ascii")
        outcome = (
            Outcome(127, "there is no nft on this server")
            if self._nft is None
            else run_command([self._nft, *options, "--file", str(script)], _SECONDS)
        )
        if outcome.status != 0:
            raise AgentError(
                "FENCE_UNAVAILABLE",
                "This source cannot be fenced: its nftables do not take the rules",
                "Install nftables on it, or cut over with fleetlift_source_after: frozen_off",
                {"output": outcome.output},
                subject="fence",
            )
