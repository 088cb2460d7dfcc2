# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.image_info: brings the agent's parsers along and shows the estimate."""

from __future__ import annotations

from typing import Any

from ansible.utils.display import Display

from ..plugin_utils.image_action import ImageAction


class ActionModule(ImageAction):
    def act(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        result = super().act(arguments, task_vars)
        if result.get("estimate_text"):
            Display().display(f"[{self.label(task_vars)}] {result['estimate_text']}")
        return result
