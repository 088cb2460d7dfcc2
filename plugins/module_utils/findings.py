# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A finding: the one shape in which this collection reports what it found or what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Worst first: what stops a migration, what may hurt, what is only worth knowing.
SEVERITIES = ("blocker", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What was found, why it matters and what to do next.

    ``code`` is stable and in UPPER_SNAKE; ``cause`` and ``action`` are whole sentences; ``evidence`` holds what was
    observed, never a secret. ``accepted`` is empty, or the ``reason`` for which an operator accepts it and the
    ``severity`` that it has otherwise.
    """

    code: str
    severity: str
    subject: str
    cause: str
    action: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    accepted: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity is one of {', '.join(SEVERITIES)}, not {self.severity!r}")

    @property
    def blocks(self) -> bool:
        return self.severity == "blocker"

    def record(self) -> dict[str, Any]:
        """The JSON form that modules return."""
        record = {**asdict(self), "evidence": dict(self.evidence)}
        if not record.pop("accepted"):
            return record
        return {**record, "accepted": dict(self.accepted)}

    def __str__(self) -> str:
        return f"{self.code}: {self.cause} Next: {self.action}"


class Refusal(Exception):
    """An error a user can cause, carried to the place that reports it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def refuse(code: str, subject: str, cause: str, action: str, **evidence: Any) -> Refusal:
    """A :class:`Refusal` with a blocker; the caller raises it."""
    return Refusal(Finding(code, "blocker", subject, cause, action, evidence))


def finding_from(record: Mapping[str, Any]) -> Finding:
    """The finding in *record*, the JSON form; keys that this version does not know are left out.

    Raises ``ValueError`` when the record lacks a code or has an unknown severity.
    """
    if not record.get("code"):
        raise ValueError(f"a finding without a code: {dict(record)!r}")
    return Finding(
        code=str(record["code"]),
        severity=str(record.get("severity", "")),
        subject=str(record.get("subject", "")),
        cause=str(record.get("cause", "")),
        action=str(record.get("action", "")),
        evidence=dict(record.get("evidence") or {}),
        accepted=dict(record.get("accepted") or {}),
    )


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """*findings*, worst first; equals keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
