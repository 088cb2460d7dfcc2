# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.journal: the files are here, and no process is started to read or write them."""

from __future__ import annotations

from typing import Any

from ..modules.journal import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction
from ..plugin_utils.journal_file import keep_journal


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION
    CONSTRAINTS = {"required_if": [("state", "present", ["phase"])]}

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        return keep_journal(arguments, check_mode=self._task.check_mode)
