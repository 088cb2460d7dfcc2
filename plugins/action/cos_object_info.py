# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.cos_object_info: hands a presigned URL over without showing it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..plugin_utils.cos_action import CosAction


class ActionModule(CosAction):
    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        if self._task.args.get("url_life") is None or self._task.args.get("url_file") is not None:
            return super().act(task_vars)
        with tempfile.TemporaryDirectory(prefix="fleetlift-url-") as directory:
            file = Path(directory, "url")
            arguments = {**self._task.args, "url_file": str(file)}
            result = dict(self._execute_module(module_args=arguments, task_vars=task_vars))
            if file.exists():
                result.update(url=file.read_text(encoding="ascii"), _ansible_no_log=True)
        return result
