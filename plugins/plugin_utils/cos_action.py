# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugins of the COS modules have in common: they run where the API key may be, and nowhere else."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.findings import refuse

LOCAL = ("local", "ansible.builtin.local")


class CosAction(ActionBase):
    """Runs the module of its name on the controller. Subclasses may take part while it runs."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        if self._connection.transport not in LOCAL:
            refusal = refuse(
                "COS_KEY_WOULD_TRAVEL",
                str((task_vars or {}).get("inventory_hostname", "")),
                "The task would run on a server, and take the cloud's API key there.",
                "Add delegate_to: localhost to the task.",
                connection=self._connection.transport,
            )
            result.update(failed=True, msg=str(refusal), finding=refusal.finding.record())
            return result
        result.update(self.act(task_vars or {}))
        return result

    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Run the module; returns its result."""
        return dict(self._execute_module(task_vars=task_vars))
