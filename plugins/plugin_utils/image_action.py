# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugins of the image modules have in common: they bring the agent to where the image is."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from . import agent_bundle


class ImageAction(ActionBase):
    """Runs the module of its name with the agent's program beside it."""

    TRANSFERS_FILES = True
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        del tmp
        try:
            arguments = {**self._task.args, "agent": self.bring_agent()}
            result.update(self.act(arguments, task_vars or {}))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def bring_agent(self) -> str:
        """Copy the agent's program to where the task runs; its path there, in the task's temporary directory."""
        directory = self._connection._shell.tmpdir or self._make_tmp_path()
        place = self._connection._shell.join_path(directory, "agent.pyz")
        self._transfer_data(place, agent_bundle.build(agent_bundle.source_directory()).data)
        self._fixup_perms2((directory, place), execute=False)
        return str(place)

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Run the module; returns its result."""
        return dict(self._execute_module(module_args=arguments, task_vars=task_vars))
