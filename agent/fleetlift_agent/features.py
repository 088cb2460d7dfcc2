# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two ends can do, and what they agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleetlift_agent import compression, hashing
from fleetlift_agent.errors import AgentError


@dataclass(frozen=True)
class Features:
    """The hash and the codec of a session."""

    hash: str
    compression: str


def offered() -> dict[str, list[str]]:
    """What this host has, the preferred one first."""
    return {
        "hash": hashing.available_hashes(),
        "compression": compression.available_codecs(),
        "change_detector": hashing.available_detectors(),
    }


def agree(peer: Mapping[str, Any], own: Mapping[str, list[str]]) -> Features:
    """The first of the peer's choices that this host has as well. Raises FEATURES_DIFFER when there is none."""
    return Features(_first(peer, own, "hash"), _first(peer, own, "compression"))


def _first(peer: Mapping[str, Any], own: Mapping[str, list[str]], kind: str) -> str:
    wanted = peer.get(kind)
    for name in wanted if isinstance(wanted, list) else []:
        if name in own[kind]:
            return str(name)
    raise AgentError(
        "FEATURES_DIFFER",
        f"The two agents have no {kind} in common",
        "Install the same version of the agent on the source and in the landing",
        {"peer": str(wanted)[:200], "own": own[kind]},
        subject="connection",
    )
