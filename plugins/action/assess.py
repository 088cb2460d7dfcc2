# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.assess. It computes, and notes what it found: no process is started for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..module_utils.estimate import Circumstances, estimate, measured_compression
from ..module_utils.findings import refuse
from ..module_utils.plan import Assessment, assessment_of
from ..modules.assess import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction
from ..plugin_utils.journal_file import keep_journal


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        try:
            assessment = assessment_of(arguments)
            expected = estimate_of(arguments, assessment)
        except (KeyError, TypeError, ValueError) as error:
            raise refuse(
                "INPUT_INVALID",
                arguments["source"],
                "source_facts, source_findings or target do not have the shape that preflight and target_info return"
                f" ({type(error).__name__}: {error}).",
                "Pass their results on unchanged.",
            ) from error
        blockers = assessment.blockers
        result: dict[str, Any] = {
            "changed": False,
            "pairs": [pair.record() for pair in assessment.pairs],
            "left_behind": list(assessment.left_behind),
            "findings": [finding.record() for finding in assessment.findings],
            "estimate": expected,
            "ok": not blockers,
        }
        if blockers:
            result["finding"] = blockers[0].record()
        if blockers and arguments["fail_on_blocker"]:
            result.update(failed=True, msg="\n".join(map(str, blockers)))
        elif arguments["record"]:
            self._record(arguments, result)
        return result

    def _record(self, arguments: dict[str, Any], result: dict[str, Any]) -> None:
        """Note what was found as the phase ``preflight`` of the source's journal."""
        data = {name: result[name] for name in ("pairs", "findings", "estimate")}
        phase = {
            "path": arguments["record"],
            "source": arguments["source"],
            "target": arguments["target_id"] or None,
            "state": "present",
            "phase": "preflight",
            "status": "ok",
            "data": {**data, "host_keys": arguments["source_facts"].get("ssh_host_keys") or []},
        }
        keep_journal(phase, check_mode=self._task.check_mode)


def estimate_of(arguments: Mapping[str, Any], assessment: Assessment) -> dict[str, Any]:
    """What migrating the paired disks will take; all disks where none is paired. Empty for a source without facts."""
    facts = arguments["source_facts"]
    if not facts:
        return {}
    wanted = {pair.source.path for pair in assessment.pairs}
    share = arguments["bandwidth_share"]
    around = Circumstances(
        bandwidth_limit=float(arguments["bandwidth_limit"]),
        budget=float(arguments["bandwidth_budget"]),
        share=share / max(1, sum(arguments["bandwidth_shares"] or [share])),
        tracked=arguments["change_tracking"]
        and not any(finding.code == "CHANGES_NOT_TRACKED" for finding in assessment.findings),
        services=len(arguments["services"]),
        compression=measured_compression(arguments["journal"]),
    )
    disks = [disk for disk in facts.get("disks") or () if not wanted or disk["path"] in wanted]
    return estimate(disks, (facts.get("probe") or {}).get("bytes_per_second"), around)
