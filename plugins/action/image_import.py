# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.image_import: shows how long the import takes."""

from __future__ import annotations

from typing import Any

from ..module_utils.import_progress import import_line
from ..plugin_utils.watched_action import WatchedAction


class ActionModule(WatchedAction):
    interval = 5.0

    def label(self) -> str:
        return str(self._task.args.get("name", ""))

    def line(self, state: dict[str, Any]) -> str:
        return import_line(state)
