# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one error that a user may see, with what to do next beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AgentError(Exception):
    """Something a user can cause or cure.

    ``code`` is stable and in UPPER_SNAKE; ``cause`` and ``action`` are whole sentences; ``evidence`` maps what was
    looked at to what was seen there, never a secret.
    """

    def __init__(
        self,
        code: str,
        cause: str,
        action: str,
        evidence: Mapping[str, Any] | None = None,
        *,
        subject: str = "",
        severity: str = "blocker",
    ) -> None:
        super().__init__(f"{code}: {cause} {action}")
        self.code = code
        self.severity = severity
        self.subject = subject
        self.cause = cause
        self.action = action
        self.evidence = dict(evidence or {})

    def record(self) -> dict[str, Any]:
        """The JSON form that state files and control replies carry."""
        return {
            "code": self.code,
            "severity": self.severity,
            "subject": self.subject,
            "cause": self.cause,
            "action": self.action,
            "evidence": self.evidence,
        }
