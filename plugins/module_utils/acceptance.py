# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an operator may say about findings: "I know, and why it does not matter here" (``fleetlift_accept``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .finding_codes import CODES
from .findings import SEVERITIES, Finding

# One step down, and never out of sight.
LESS = dict(zip(SEVERITIES, (*SEVERITIES[1:], SEVERITIES[-1])))


def accept(findings: Iterable[Finding], accepted: Mapping[str, object]) -> list[Finding]:
    """*findings* with those whose code is in *accepted* one step less severe, and why; and what is wrong with it.

    *accepted* is a reason by code. A code that is not known, cannot be accepted or comes without a reason is a finding
    of its own, and accepts nothing.
    """
    wrong = [refusal for code, reason in accepted.items() for refusal in [_refusal(str(code), reason)] if refusal]
    good = {str(code): str(reason).strip() for code, reason in accepted.items() if not _refusal(str(code), reason)}
    return [
        *wrong,
        *(_lowered(finding, good[finding.code]) if finding.code in good else finding for finding in findings),
    ]


def _lowered(finding: Finding, reason: str) -> Finding:
    return replace(finding, severity=LESS[finding.severity], accepted={"reason": reason, "severity": finding.severity})


def _refusal(code: str, reason: object) -> Finding | None:
    """What is wrong with accepting *code* for *reason*; None when nothing is."""
    if code not in CODES:
        near = sorted(known for known in CODES if set(code.split("_")) & set(known.split("_")))[:5]
        return Finding(
            "ACCEPT_UNKNOWN",
            "blocker",
            "fleetlift_accept",
            f"fleetlift_accept names {code}, which is no code of the preflight.",
            f"Correct it{': ' + ', '.join(near) if near else ''}. docs/errors.md lists all of them.",
            {"code": code},
        )
    guarded = CODES[code].guards
    if guarded:
        return Finding(
            "ACCEPT_REFUSED",
            "blocker",
            "fleetlift_accept",
            f"fleetlift_accept names {code}, which cannot be accepted: {guarded}.",
            "Remove it from fleetlift_accept and mend what the finding says.",
            {"code": code},
        )
    if not isinstance(reason, str) or not reason.strip():
        return Finding(
            "ACCEPT_WITHOUT_REASON",
            "blocker",
            "fleetlift_accept",
            f"fleetlift_accept gives no reason for {code}.",
            f"Write one, for whoever reads the report: {{{code}: why it does not matter here}}.",
            {"code": code},
        )
    return None
