# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugins that do their work in the controller's own process have in common."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.findings import Refusal
from .agent_action import argument_spec


class ControllerAction(ActionBase):
    """An action without a module on a server. Subclasses set ``DOCUMENTATION`` and implement ``act``.

    ``CONSTRAINTS`` are further arguments of ``validate_argument_spec``, such as ``required_if``.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    DOCUMENTATION = ""
    CONSTRAINTS: dict[str, Any] = {}

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Do the work; returns the task's result. Raises Refusal for what the user can act on."""
        raise NotImplementedError

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        _validated, arguments = self.validate_argument_spec(argument_spec(self.DOCUMENTATION), **self.CONSTRAINTS)
        try:
            result.update(self.act(arguments, task_vars or {}))
        except Refusal as refusal:
            result.update(failed=True, msg=str(refusal), finding=refusal.finding.record())
        return result
