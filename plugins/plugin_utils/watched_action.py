# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Action plugins of modules that run on the controller for long: they show the state that a module keeps in a file."""

from __future__ import annotations

from typing import Any

from .cos_action import CosAction
from .progress_watch import INTERVAL, progress_shown


class WatchedAction(CosAction):
    """Runs the module of its name with a ``progress_file``, and prints a line whenever that has changed."""

    interval = INTERVAL

    def label(self) -> str:
        """What the lines are about, besides the host."""
        raise NotImplementedError

    def line(self, state: dict[str, Any]) -> str:
        """The line about a state."""
        raise NotImplementedError

    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        host = task_vars.get("inventory_hostname", "localhost")
        with progress_shown(f"{host}: {self.label()}", self.line, self.interval) as file:
            arguments = {"progress_file": file, **self._task.args}
            return dict(self._execute_module(module_args=arguments, task_vars=task_vars))
