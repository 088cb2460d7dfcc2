# Copyright (c) 2026, Fleetlift contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Controller half of fleetlift.cvm.cos_object: shows how far the upload is."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

from ..module_utils.upload_progress import read_progress, upload_line
from ..plugin_utils.cos_action import CosAction

INTERVAL = 3.0


class ActionModule(CosAction):
    def act(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        directory = tempfile.mkdtemp(prefix="fleetlift-upload-")
        file = Path(directory, "progress.json")
        name = task_vars.get("inventory_hostname", "localhost")
        label = f"{name}: {self._task.args.get('key', '')}"
        end = threading.Event()
        watcher = threading.Thread(target=watch, args=(file, label, end), name="upload-progress", daemon=True)
        watcher.start()
        try:
            arguments = {"progress_file": str(file), **self._task.args}
            return dict(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            end.set()
            watcher.join()
            shutil.rmtree(directory)


def watch(file: Path, label: str, end: threading.Event) -> None:
    """Print a line whenever the upload has moved, until ``end``."""
    last = ""
    while not end.wait(INTERVAL):
        state = read_progress(file)
        line = upload_line(state) if state is not None else ""
        if line and line != last:
            Display().display(f"[{label}] {line}")
            last = line
