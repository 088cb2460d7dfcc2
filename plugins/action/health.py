# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.health: network checks from here, commands over the task's own connection."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.findings import Refusal
from ..modules.health import DOCUMENTATION
from ..plugin_utils.agent_action import argument_spec
from ..plugin_utils.health_checks import Place, failure, run_all
from ..plugin_utils.remote_agent import RemoteShell


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        _validated, arguments = self.validate_argument_spec(argument_spec(DOCUMENTATION))
        place = Place(arguments["address"], RemoteShell(self._execute), arguments["host_keys"])
        try:
            outcomes = run_all(place, arguments["checks"], arguments["timeout"])
            result["checks"] = [outcome.record() for outcome in outcomes]
            if not all(outcome.ok for outcome in outcomes):
                raise failure(place.address, outcomes)
        except Refusal as refusal:
            result.update(failed=True, msg=str(refusal), finding=refusal.finding.record())
        result["changed"] = False
        return result

    def _execute(self, command: str, **options: Any) -> dict[str, Any]:
        """A connection that was opened to a server that has gone since is never used again."""
        try:
            answer: dict[str, Any] = self._low_level_execute_command(command, **options)
        finally:
            self._connection.close()
        return answer
