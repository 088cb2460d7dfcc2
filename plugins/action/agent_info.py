# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.agent_info."""

from __future__ import annotations

from typing import Any

from ..plugin_utils.agent_action import AgentAction


class ActionModule(AgentAction):
    MODULE = "agent_info"

    def act(self, arguments: dict[str, Any]) -> dict[str, Any]:
        state = self.agent(arguments).status_or_none()
        return {"changed": False, "running": state is not None, "agent": state or {}}
