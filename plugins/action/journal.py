# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.journal: the files are here, and no process is started to read or write them."""

from __future__ import annotations

import os
from typing import Any

from ..module_utils.findings import refuse
from ..module_utils.journal import keep
from ..modules.journal import DOCUMENTATION
from ..plugin_utils.controller_action import ControllerAction


class ActionModule(ControllerAction):
    DOCUMENTATION = DOCUMENTATION
    CONSTRAINTS = {"required_if": [("state", "present", ["phase"])]}

    def act(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        arguments["path"] = os.path.expanduser(arguments["path"])
        try:
            return keep(arguments, check_mode=self._task.check_mode)
        except OSError as error:
            raise refuse(
                "JOURNAL_NOT_WRITTEN",
                arguments["source"],
                f"The journal of {arguments['source']} could not be written: {error}.",
                f"Make the directory {arguments['path']} writable for the user who runs Ansible, or choose another.",
            ) from error
