# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the action plugins of the image modules have in common: they bring the agent to where the image is."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ansible.plugins.action import ActionBase

from ..module_utils.upload_progress import upload_line
from . import agent_bundle
from .cos_action import LOCAL
from .progress_watch import progress_shown


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

    def label(self, task_vars: dict[str, Any]) -> str:
        """How lines about the image begin."""
        name = PurePath(str(self._task.args.get("path", ""))).name
        return f"{task_vars.get('inventory_hostname', 'localhost')}: {name}"

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Run the module; returns its result."""
        return dict(self._execute_module(module_args=arguments, task_vars=task_vars))


class LongImageAction(ImageAction):
    """One whose progress is shown, which its module keeps in a file. On another machine it runs without being seen."""

    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        if self._connection.transport not in LOCAL:
            return super().act(arguments, task_vars)
        with progress_shown(self.label(task_vars), upload_line) as file:
            return super().act({"progress_file": file, **arguments}, task_vars)
