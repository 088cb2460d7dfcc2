# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.cos_object_info: keeps a presigned URL out of the output."""

from __future__ import annotations

from typing import Any

from ..plugin_utils.cos_action import CosAction


class ActionModule(CosAction):
    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        result = super().act(task_vars)
        if "url" in result:
            result["_ansible_no_log"] = True
        return result
