# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.journal: the files are here, and no process is started to read or write them."""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.findings import Refusal, refuse
from ..module_utils.journal import keep
from ..modules.journal import DOCUMENTATION
from ..plugin_utils.agent_action import argument_spec


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        _validated, arguments = self.validate_argument_spec(
            argument_spec(DOCUMENTATION), required_if=[("state", "present", ["phase"])]
        )
        arguments["path"] = os.path.expanduser(arguments["path"])
        try:
            result.update(self._keep(arguments))
        except Refusal as refusal:
            result.update(failed=True, msg=str(refusal), finding=refusal.finding.record())
        return result

    def _keep(self, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            return keep(arguments, check_mode=self._task.check_mode)
        except OSError as error:
            raise refuse(
                "JOURNAL_NOT_WRITTEN",
                arguments["source"],
                f"The journal of {arguments['source']} could not be written: {error}.",
                f"Make the directory {arguments['path']} writable for the user who runs Ansible, or choose another.",
            ) from error
