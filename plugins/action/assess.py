# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.assess. It computes and touches nothing, so that no process is started for it."""

from __future__ import annotations

from typing import Any

from ..module_utils.findings import refuse
from ..module_utils.plan import assessment_of
from ..modules.assess import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        try:
            assessment = assessment_of(arguments)
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
            "findings": [finding.record() for finding in assessment.findings],
            "ok": not blockers,
        }
        if blockers:
            result["finding"] = blockers[0].record()
        if blockers and arguments["fail_on_blocker"]:
            result.update(failed=True, msg="\n".join(map(str, blockers)))
        return result
