# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.cos_object: shows how far the upload is."""

from __future__ import annotations

from typing import Any

from ..module_utils.upload_progress import upload_line
from ..plugin_utils.watched_action import WatchedAction


class ActionModule(WatchedAction):
    def label(self) -> str:
        return str(self._task.args.get("key", ""))

    def line(self, state: dict[str, Any]) -> str:
        return upload_line(state)
