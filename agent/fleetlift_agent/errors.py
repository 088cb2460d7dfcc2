# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of the agent: an error that names its cause and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AgentError(Exception):
    """A failure as a record: stable code, cause, action and evidence.

    code is UPPER_SNAKE and never changes its meaning. cause says what happened,
    action what the operator does next, evidence is JSON-serialisable detail.
    """

    def __init__(
        self,
        code: str,
        cause: str,
        action: str,
        evidence: Mapping[str, Any] | None = None,
        *,
        subject: str = "agent",
        severity: str = "blocker",
    ) -> None:
        super().__init__(f"{code}: {cause}. {action}")
        self.code = code
        self.cause = cause
        self.action = action
        self.evidence: dict[str, Any] = dict(evidence or {})
        self.subject = subject
        self.severity = severity

    def record(self) -> dict[str, Any]:
        """The error as the record every part of the project exchanges."""
        return {
            "code": self.code,
            "severity": self.severity,
            "subject": self.subject,
            "cause": self.cause,
            "action": self.action,
            "evidence": self.evidence,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> AgentError:
        """The error that a record (from the peer or a daemon) describes; unknown shapes are kept as evidence."""
        evidence = record.get("evidence")
        return cls(
            str(record.get("code", "UNKNOWN_ERROR"))[:64],
            str(record.get("cause", "no cause was given"))[:2000],
            str(record.get("action", "See the agent's log"))[:2000],
            evidence if isinstance(evidence, dict) else {},
            subject=str(record.get("subject", "agent"))[:256],
            severity=str(record.get("severity", "blocker"))[:16],
        )
